"""The console as somebody in front of it sees it: real server and console, headless Chromium, loopback alone."""

import base64
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l2r2.manifest import PolicyManifest
from l2r2.types import Caution, Stage
from l2r2_serving.report import CAUTIONS
from tests.serving.running import PATIENCE_S
from tests.tiny import BLUE, DARK, DARK_GREEN, GREEN, MUDDY, RED, encode, make_photo, make_tiny_bundle, make_uniform

pytest.importorskip("uvicorn", reason="the console's extra is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = os.environ.get("L2R2_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; install it or set L2R2_CHROMIUM")

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
"""No name is looked up; the camera is one of Chromium's own making."""

DROP = """([data, name]) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const carried = new DataTransfer();
  carried.items.add(new File([bytes], name));
  document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: carried, bubbles: true }));
}"""

THREE = ((40, 30, 80, 100, MUDDY), (130, 180, 70, 60, BLUE), (60, 250, 30, 40, GREEN))
"""Top, left, height, width, colour."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server and a console as a user starts them; where to open it. Neither says a word while it works."""
    policy = PolicyManifest(
        temperatures={Stage.FG: (1.0,), Stage.FULL: (1.0,)},
        operator="smax",
        threshold=0.8,
        coverage=0.9,
        set_threshold=0.05,
        hazardous=("blue",),
        hazard_mass=0.2,
    )
    folder = tmp_path_factory.mktemp("console") / "tiny"
    make_tiny_bundle(folder, policy=policy)
    scratch = tmp_path_factory.mktemp("scratch")
    with ExitStack() as stack:
        served = stack.enter_context(_started("serve", folder, "--port", 0, "--workers", 1))
        server = re.search(r"ready on (\S+),", _line(served))[1]  # type: ignore[index]
        shown = stack.enter_context(_started("console", "--server", server, "--port", 0, TMPDIR=str(scratch)))
        try:
            yield re.search(r"http://\S+/", _line(shown))[0]  # type: ignore[index]
        finally:
            for process in (shown, served):
                process.send_signal(signal.SIGTERM)
            for process in (shown, served):
                try:
                    assert process.communicate(timeout=PATIENCE_S) == ("", "")
                finally:
                    process.kill()
    assert list(scratch.iterdir()) == []  # no photograph was written anywhere


def _started(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "l2r2", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.stderr and process.stderr.read()
    return line


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=list(ARGUMENTS))
        yield opened
        opened.close()


Open = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[Open]:
    """Opens the console in a fresh browser context; afterwards nothing was asked of anybody else, and nothing broke."""
    contexts, asked, broken = [], [], []

    def opening(**options: Any) -> Any:
        context = browser.new_context(**options)
        context.set_default_timeout(1000 * PATIENCE_S)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: broken.append(str(error)))
        page.on(
            "console", lambda said: None if "status of 400" in said.text else broken.append(f"{said.type} {said.text}")
        )
        page.goto(address)
        return page

    yield opening
    for context in contexts:
        context.close()
    assert [url for url in asked if not url.startswith((address, "data:", f"blob:{address}"))] == []
    assert broken == []


def recognize(page: Any, photo: bytes, name: str = "photo.png") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": "", "buffer": photo})
    page.click("#go")
    page.wait_for_selector("#answer, #result .error")


def rows(page: Any, table: str) -> list[list[str]]:
    cells = [row.locator("th, td").all_inner_texts() for row in page.locator(f"#result > {table} tr").all()]
    return [[" ".join(cell.split()) for cell in row] for row in cells]


def test_a_dropped_photo_is_answered_and_explained(open_page: Open, tmp_path: Path) -> None:
    page = open_page()
    photo = encode(make_photo(MUDDY, DARK_GREEN))
    page.evaluate(DROP, [base64.b64encode(photo).decode(), "found.png"])
    page.wait_for_selector("#preview:visible")
    assert page.inner_text("#chosen") == "found.png, 1 KiB"
    page.select_option("[data-source=habitat]", "meadow")
    page.select_option("[data-source=month]", label="May")
    page.click("#go")
    page.wait_for_selector("#answer")
    page.screenshot(path=tmp_path / "desktop.png", full_page=True)

    answer, probability = page.inner_text("#answer").split(", ")
    assert page.inner_text("#status") == f"Answered: {answer}, {probability}."
    bars = rows(page, ".bars")
    assert bars[0] == ["class", "FG", "FULL", "answer"]
    assert bars[1][0] == answer == "green"
    assert bars[1][3] == probability
    gate = page.locator(".bars .fg .gate").first.get_attribute("x1")
    assert gate == "80.00"
    evidence = rows(page, ".evidence")
    assert [row[0] for row in evidence[1:]] == ["FG", "FULL", "habitat meadow", "month May", "total"]
    parts = [float(row[2].replace("−", "-")) for row in evidence[1:]]
    assert sum(parts[:-1]) == pytest.approx(parts[-1], abs=0.03)
    assert parts[2] > 0  # green grows on meadows
    assert page.locator(".cautions li").all_inner_texts() == [CAUTIONS[Caution.FG_UNSURE_FULL_SURE]]
    assert page.locator(".set li").all_inner_texts()[0] == "green"
    assert "90 %" in page.inner_text(".among")
    assert re.fullmatch(r"FG \([\d.]+ %\) → FULL \([\d.]+ %\)", page.inner_text(".stages"))
    assert [row[0] for row in rows(page, ".steps")[1:3]] == ["decode", "locate"]
    assert "The foreground is framed." in page.get_attribute("figure img", "alt")
    assert page.evaluate("document.activeElement.id") == "answer"


def test_free_text_that_the_bundle_does_not_know_is_told(open_page: Open) -> None:
    page = open_page()
    assert not page.is_visible("[data-free=substrate]")
    page.select_option("[data-source=substrate]", label="other …")
    page.fill("[data-free=substrate]", "old <b>boat</b>")
    recognize(page, encode(make_photo(RED)))
    assert page.inner_text(".ignored") == "substrate “old <b>boat</b>” is not known to the bundle and had no influence."
    assert page.inner_text("#answer").startswith("red, ")
    assert [row[2] for row in rows(page, ".bars")[1:]] == ["did not run"] * 3


def test_nothing_found_is_told(open_page: Open) -> None:
    page = open_page()
    recognize(page, encode(make_uniform(RED)))
    assert page.locator(".cautions li").all_inner_texts()[0] == CAUTIONS[Caution.NOTHING_FOUND]
    assert page.inner_text(".region") == "none found in 160 × 120 pixels"
    assert [row[1] for row in rows(page, ".bars")[1:]] == ["did not run"] * 3


def test_several_foregrounds_on_a_phone(open_page: Open, tmp_path: Path) -> None:
    page = open_page(viewport={"width": 390, "height": 844}, color_scheme="dark", has_touch=True, is_mobile=True)
    photo = np.full((240, 320, 3), DARK, np.uint8)
    for top, left, height, width, colour in THREE:
        photo[top : top + height, left : left + width] = colour
    page.click("#options summary")
    page.fill("#max_detections", "4")
    page.fill("#top_k", "2")
    page.check("#thumbnail")
    page.locator("#localizer_threshold").fill("0.1")
    assert page.inner_text("#threshold_said") == "0.10"
    recognize(page, encode(photo))
    page.screenshot(path=tmp_path / "phone.png", full_page=True)
    assert page.inner_text("#answer").startswith("1: ")
    assert [text[:2] for text in page.locator(".other summary").all_inner_texts()] == ["2:", "3:"]
    assert page.locator(".thumbnail").count() == 3
    assert len(rows(page, ".bars")) == 1 + 2
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 22, 22)"


def test_a_withheld_answer_is_said_plainly(open_page: Open) -> None:
    page = open_page()
    recognize(page, encode(make_photo((150, 150, 240), DARK)))
    assert page.inner_text("#answer") == "Withheld: no answer is given"
    assert page.locator(".cautions li").all_inner_texts()[0] == CAUTIONS[Caution.HAZARD]
    assert "blue hazardous" in [row[0] for row in rows(page, ".bars")]


def test_a_photo_is_taken_with_the_camera(open_page: Open) -> None:
    page = open_page()
    page.click("#camera")
    page.wait_for_selector("#booth[open]")
    page.click("#snap")
    page.wait_for_selector("#preview:visible")
    assert "camera.jpg" in page.inner_text("#chosen")
    assert not page.is_visible("#booth")
    page.click("#go")
    page.wait_for_selector("#answer")


def test_a_text_file_is_a_readable_error_and_the_next_photo_is_answered(open_page: Open) -> None:
    page = open_page()
    recognize(page, b"this is no photograph", "notes.txt")
    said = page.inner_text("#result")
    assert said.startswith("No answer: the 21 bytes are no image that can be read")
    assert "\n" not in said
    assert page.get_attribute("#result .error", "role") == "alert"
    recognize(page, encode(make_photo(RED)))
    page.wait_for_selector("#answer")


def test_no_photo_is_asked_for(open_page: Open) -> None:
    page = open_page()
    page.click("#go")
    assert "There is no photograph yet" in page.inner_text("#result .error")


def test_every_field_has_a_name_and_the_keyboard_reaches_it(open_page: Open) -> None:
    page = open_page()
    page.click("#options summary")
    for field in page.locator("select, input, button").all():
        named = field.evaluate("e => !!(e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim())")
        assert named, field.evaluate("e => e.outerHTML")
    reached = []
    page.evaluate("document.activeElement.blur()")
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.dataset.source"))
    assert {"file", "camera", "habitat", "substrate", "month", "top_k", "localizer_threshold", "go"} <= set(reached)
