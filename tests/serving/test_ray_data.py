"""A data set with Ray Data: one row a photograph in the output, whatever is killed meanwhile."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from l2r2.bundle import Bundle
from l2r2.cli import build
from l2r2.errors import ArtifactError, ConfigError, DatasetError
from l2r2.types import make_metadata
from l2r2_serving.bundles import OpenBundle
from l2r2_serving.ray_data import RESTARTS, DatasetSettings, recognize_dataset
from l2r2_serving.ray_listing import list_photographs
from l2r2_serving.ray_rows import recognized
from tests.serving.disks import filled, small_disk
from tests.serving.leaving import session, started
from tests.tiny import BLUE, DARK_GREEN, GREEN, MUDDY, RED, encode, make_photo, make_uniform

ray = pytest.importorskip("ray")

PATIENCE_S = 240.0
"""Ray takes seconds to start, more on a busy machine."""


# What the photographs are


def test_a_folder_is_searched_as_a_whole_and_in_order(tmp_path: Path) -> None:
    for name in ("b.jpg", "a/z.PNG", "a/notes.txt", "c.tiff", "a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    listing = list_photographs(tmp_path, [])
    assert listing.columns == ["path"]
    assert listing["path"].to_list() == [str(tmp_path / name) for name in ("a.jpg", "a/z.PNG", "b.jpg", "c.tiff")]


def test_a_table_keeps_its_order_and_what_the_bundle_knows(tmp_path: Path) -> None:
    table = tmp_path / "photos.csv"
    table.write_text(
        "path,month,rater,soil_ph,habitat\nz.jpg,9.0,ann,5.5,forest\nsub/../a.jpg,,bob,7,\n/b.jpg,12,ann,,\n"
    )
    listing = list_photographs(table, ["soil_ph"])
    assert listing.rows() == [
        (str(tmp_path / "z.jpg"), "9", "5.5", "forest"),
        (str(tmp_path / "a.jpg"), None, "7.0", None),
        ("/b.jpg", "12", None, None),
    ]
    assert listing.columns == ["path", "month", "soil_ph", "habitat"]
    pl.read_csv(table).write_parquet(tmp_path / "photos.parquet")
    assert list_photographs(tmp_path / "photos.parquet", ["soil_ph"]).equals(listing)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("photos.csv", "path\na.jpg\nb.jpg\n./a.jpg\n", "a.jpg twice; expected each photograph once"),
        ("photos.csv", "file,month\na.jpg,1\n", "has columns file, month; expected `path`, of text"),
        ("photos.csv", 'path,month\n"",1\n,2\n', "has 2 rows without a path"),
        ("photos.csv", "path\n", "has no photograph; expected files of .bmp, "),
        ("photos.parquet", "path\n", "photos.parquet cannot be read: "),
        ("photos.xlsx", "path\n", "is neither a folder nor a table; expected .parquet or .csv"),
        ("missing.csv", None, "missing.csv cannot be read: No such file"),
    ],
)
def test_tables_that_cannot_be_used(name: str, content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DatasetError, match=message):
        list_photographs(tmp_path / name, [])


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="has no photograph"):
        list_photographs(tmp_path, [])
    (tmp_path / os.fsdecode(b"\xff.jpg")).write_bytes(b"")
    with pytest.raises(DatasetError, match=r"has a file name that is no UTF-8: .*\\udcff.jpg'; rename it"):
        list_photographs(tmp_path, [])


# What is said of one


def test_a_row_is_what_the_bundle_answers(opened: OpenBundle, tmp_path: Path) -> None:
    file = tmp_path / "muddy.png"
    file.write_bytes(encode(make_photo(MUDDY, DARK_GREEN)))
    row = recognized(opened, 2, str(file), {"habitat": " lava ", "month": "09", "substrate": None})
    answer = opened.answer(file.read_bytes(), {"habitat": "lava", "month": "9"}, 2).prediction
    assert row["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (row["bundle"], row["bundle_version"]) == ("tiny", opened.version)
    assert (row["class"], row["probability"]) == ("green", answer.answer.probability)
    assert row["top_k"] == [{"name": c.name, "probability": c.probability} for c in answer.candidates]
    assert row["stages"] == ["FG", "FULL"]
    assert row["cautions"] == ["fg_unsure_full_sure"]
    assert row["box_xyxy_px"] == pytest.approx([52, 36, 108, 84], abs=1.0)
    assert (row["width_px"], row["height_px"]) == (160, 120)
    assert row["unrecognized"] == [{"source": "habitat", "value": "lava"}]
    assert "error" not in row


def test_what_cannot_be_recognized_says_why(opened: OpenBundle, tmp_path: Path) -> None:
    text, pipe, photo = tmp_path / "text.jpg", tmp_path / "pipe.jpg", tmp_path / "photo.png"
    text.write_text("this is no photograph")
    os.mkfifo(pipe)
    photo.write_bytes(encode(make_photo()))

    def error(path: Path, **known: str | None) -> str:
        row = recognized(opened, 5, str(path), known)
        assert row.keys() <= {"path", "bundle", "bundle_version", "sha256", "error"}
        return str(row["error"])

    assert error(text).startswith("the 21 bytes are no image that can be read")
    assert error(pipe).startswith("the photograph is empty (0 bytes)")
    assert error(tmp_path / "missing.jpg") == "cannot be read: No such file or directory"
    assert error(tmp_path) == "cannot be read: Is a directory"
    assert error(photo, month="13").startswith("month is '13'; expected a whole number from 1")
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(opened.manifest.images.max_bytes + 1)
    assert error(tmp_path / "huge.jpg") == "the file has more than 33,554,432 bytes; expected fewer"


# The command


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(build(), [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    "words",
    [
        ["--ray", "photos"],
        ["--ray", "photos", "--bundle", "b"],
        ["--ray", "photos", "--out", "o"],
        ["photo.jpg", "--ray", "photos", "--bundle", "b", "--out", "o"],
        ["--ray", "photos", "--bundle", "b", "--out", "o", "--server", "127.0.0.1:1"],
        ["--ray", "photos", "--bundle", "b", "--out", "o", "--month", "9"],
        ["photo.jpg", "--bundle", "b", "--out", "o"],
        ["photo.jpg", "--bundle", "b", "--shard-size", "9"],
    ],
)
def test_options_that_do_not_go_together(words: list[str]) -> None:
    done = invoke("recognize", *words)
    assert done.exit_code == 2
    assert "--ray DATASET" in done.stderr


def test_the_output_is_of_one_run_and_no_photographs(bundle: Bundle, tmp_path: Path) -> None:
    photos, settings = tmp_path / "photos", DatasetSettings()
    photos.mkdir()
    (photos / "a.png").write_bytes(b"")
    with pytest.raises(ConfigError, match="holds the photographs"):
        recognize_dataset(photos, tmp_path, str(bundle.folder), settings)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match=r"holds thesis\.tex and no run; choose an empty folder as --out"):
        recognize_dataset(photos, other, str(bundle.folder), settings)
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "_run.json").write_text("{")
    with pytest.raises(ArtifactError, match="is no JSON"):
        recognize_dataset(photos, torn, str(bundle.folder), settings)


# The whole, for real


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 photographs in a table, each another one, big enough to take a while; some that cannot be recognized."""
    folder = tmp_path_factory.mktemp("dataset")
    rows: list[dict[str, Any]] = []
    for i in range(48):
        small = make_uniform(GREEN) if i % 8 == 7 else make_photo((RED, GREEN, BLUE, MUDDY)[i % 4])
        small = np.maximum(small, i)
        (folder / f"{i:02}.png").write_bytes(encode(small.repeat(12, 0).repeat(12, 1)))
        rows.append({"path": f"{i:02}.png", "habitat": ("forest", "lava", None)[i % 3], "month": 1 + i % 12})
    (folder / "05.png").write_text("this is no photograph")
    rows[11]["month"] = 13
    rows[20]["path"] = "missing.png"
    pl.DataFrame(rows).write_parquet(folder / "photos.parquet")
    return folder / "photos.parquet"


def command(photos: Path, bundle: Bundle, out: Path) -> list[str]:
    words = ["--bundle", bundle.folder, "--out", out, "--shard-size", 4, "--actors", 2, "--top-k", 2]
    return [sys.executable, "-m", "l2r2", "recognize", "--ray", *map(str, [photos, *words])]


def run(photos: Path, bundle: Bundle, out: Path) -> str:
    done = subprocess.run(command(photos, bundle, out), capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture(scope="module")
def undisturbed(photos: Path, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    said = run(photos, bundle, out)
    assert said.startswith(f"l2r2 recognize: 48 photographs in {out}, 3 with an error; 48 now, ")
    assert said.endswith(" a second\n")
    return out


def answers(out: Path) -> pl.DataFrame:
    return pl.read_parquet(sorted(out.glob("part-*.parquet")))


@pytest.mark.slow
def test_each_photograph_has_its_row(undisturbed: Path, photos: Path, bundle: Bundle, opened: OpenBundle) -> None:
    table, wanted = answers(undisturbed), pl.read_parquet(photos)
    assert table["path"].to_list() == [str(photos.with_name(name)) for name in wanted["path"]]
    wrong = [(Path(row["path"]).name, row["error"][:12]) for row in table.rows(named=True) if row["error"]]
    assert wrong == [("05.png", "the 21 bytes"), ("11.png", "month is '13"), ("missing.png", "cannot be re")]
    for row, known in zip(table.rows(named=True), wanted.rows(named=True), strict=True):
        if row["error"] is None:
            metadata = make_metadata(habitat=known["habitat"], month=known["month"])
            answer = opened.answer(Path(row["path"]).read_bytes(), metadata, 2).prediction
            assert [(c["name"], c["probability"]) for c in row["top_k"]] == [
                (c.name, pytest.approx(c.probability, abs=1e-6)) for c in answer.candidates
            ]
            assert row["stages"] == [str(stage) for stage in answer.stages]
            assert (row["box_xyxy_px"] is None) == (answer.region is None)
    manifest = json.loads((undisturbed / "_manifest.json").read_text())
    assert (manifest["photographs"], manifest["errors"], len(manifest["parts"])) == (48, 3, 12)
    for told in manifest["parts"]:
        assert told["sha256"] == hashlib.sha256((undisturbed / told["file"]).read_bytes()).hexdigest()
    assert {file.name[:5] for file in undisturbed.iterdir()} == {"part-", "_run.", "_list", "_mani", "_lock"}


@pytest.mark.slow
def test_what_is_done_is_not_done_again(undisturbed: Path, photos: Path, bundle: Bundle, tmp_path: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in undisturbed.glob("part-*")}
    settings = DatasetSettings(shard_size=4, top_k=2)
    done = recognize_dataset(photos, undisturbed, str(bundle.folder), settings)
    assert (done.photographs, done.errors, done.done) == (48, 3, 0)
    assert {file: file.stat().st_mtime_ns for file in undisturbed.glob("part-*")} == before
    with pytest.raises(ConfigError, match=r"holds another run \(top_k is 5, was 2\); choose another --out"):
        recognize_dataset(photos, undisturbed, str(bundle.folder), DatasetSettings(shard_size=4))
    fewer = tmp_path / "fewer.csv"
    fewer.write_text(f"path\n{photos.with_name('00.png')}\n")
    with pytest.raises(ConfigError, match=r"holds another run \(photographs is 1, was 48\)"):
        recognize_dataset(fewer, undisturbed, str(bundle.folder), settings)


@pytest.mark.slow
def test_killed_and_started_again_it_gives_the_same_rows(
    undisturbed: Path, photos: Path, bundle: Bundle, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with started(command(photos, bundle, out), tmp_path / "log") as process:
        until(lambda: len(parts(out)) >= 2, process)
        with pytest.raises(ArtifactError, match="is in use by another run"):
            recognize_dataset(photos, out, str(bundle.folder), DatasetSettings(shard_size=4, top_k=2))
        process.kill()
    done = parts(out)
    assert 2 <= len(done) < 12
    assert not (out / "_manifest.json").exists()
    before = {name: (out / name).stat().st_mtime_ns for name in done}
    (out / ".part-00011.parquet.1-0000.tmp").write_bytes((out / done[0]).read_bytes()[:100])

    with started(command(photos, bundle, out), tmp_path / "log") as process:  # and an actor is killed on the way
        until(lambda: len(parts(out)) > len(done), process)
        actor = next(pid for pid, name in session(process.pid).items() if name.startswith("ray::MapWorker"))
        os.kill(actor, signal.SIGKILL)
        assert process.wait(PATIENCE_S) == 0
    assert (tmp_path / "log").read_text() == ""
    assert {name: (out / name).stat().st_mtime_ns for name in done} == before
    assert answers(out).equals(answers(undisturbed))
    assert (out / "_manifest.json").read_text() == (undisturbed / "_manifest.json").read_text()
    assert not list(out.glob(".*"))


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_what_is_done_stays(
    undisturbed: Path, photos: Path, bundle: Bundle, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 2**20) as disk:
        out = disk / "out"
        ballast = filled(disk, 10 * 4096)
        done = subprocess.run(command(photos, bundle, out), capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 1
        assert done.stderr.startswith(f"l2r2: error: cannot write {out}/part-")
        assert done.stderr.endswith("No space left on device; nothing was changed, make room and run it again\n")
        before = {name: (out / name).stat().st_mtime_ns for name in parts(out)}
        assert 0 < len(before) < 12
        ballast.unlink()
        run(photos, bundle, out)
        assert {name: (out / name).stat().st_mtime_ns for name in before} == before
        assert answers(out).equals(answers(undisturbed))
        assert not list(out.glob(".*"))


UNLUCKY = """
import sys
from pathlib import Path
from l2r2.errors import BackendError
from l2r2_serving import ray_data

photos, out, bundle, what = sys.argv[1:]

class Unlucky(ray_data.Recognizing):
    def _write(self, shard):
        raise {"ours": BackendError("no such device"), "another's": MemoryError("a large photograph")}[what]

ray_data.Recognizing = Unlucky
try:
    ray_data.recognize_dataset(Path(photos), Path(out), bundle, ray_data.DatasetSettings())
except BackendError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("ours", "no such device"),
        (
            "another's",
            "recognizing broke off: MemoryError: a large photograph; what is done stays, run it again",
        ),
    ],
)
def test_what_goes_wrong_in_an_actor_is_said(what: str, said: str, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(encode(make_photo(RED)))
    words = [sys.executable, "-c", UNLUCKY, tmp_path / "photos", tmp_path / "out", bundle.folder, what]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout, done.stderr) == (0, said + "\n", "")


POISONED = """
import os, signal, sys
from pathlib import Path
from l2r2.errors import BackendError
from l2r2_serving import ray_data

photos, out, bundle, died = sys.argv[1:]

class Poisoned(ray_data.Recognizing):
    def __call__(self, row):
        if row["shard"] == 1:
            with open(died, "a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(row)

ray_data.Recognizing = Poisoned
settings = ray_data.DatasetSettings(shard_size=2, actors=1)
try:
    ray_data.recognize_dataset(Path(photos), Path(out), bundle, settings)
except BackendError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_photograph_that_kills_its_process_ends_the_run(bundle: Bundle, tmp_path: Path) -> None:
    """Out of memory, or a decoder's fault: not again and again without end."""
    folder, out, died = tmp_path / "photos", tmp_path / "out", tmp_path / "died"
    folder.mkdir()
    for n in range(4):
        (folder / f"{n}.png").write_bytes(encode(make_photo(RED)))
    words = [sys.executable, "-c", POISONED, folder, out, bundle.folder, died]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stderr) == (0, "")
    assert died.read_text() == "x" * (RESTARTS + 1)
    said = done.stdout.splitlines()[-1]
    assert said.startswith(f"recognizing broke off: {RESTARTS + 1} processes died over one part")
    assert f"has rows 2 to 3 of {out / '_listing.parquet'}" in said
    assert parts(out) == ["part-00000.parquet"]


def parts(out: Path) -> list[str]:
    return sorted(file.name for file in out.glob("part-*.parquet"))


def until(condition: Any, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, "it has ended"
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)
