"""The example in Node.js, run for real: packages from npm, stubs from proto/, programs against a server on loopback."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from l2r2.bundle import Bundle
from l2r2.types import Caution
from l2r2_serving.auth import TokenInterceptor, Tokens, hash_of
from l2r2_serving.client import Client
from l2r2_serving.limits import RETRY_AFTER_S
from l2r2_serving.settings import TlsSettings
from l2r2_serving.tls import credentials
from l2r2_serving.v1 import recognition_pb2 as pb
from tests.serving.proxy import proxied
from tests.serving.running import PATIENCE_S, ChangedBundle, GatedLocalizer, Running, eventually, running
from tests.tiny import DARK, GREEN, MUDDY, RED, encode, make_photo, make_tiny_bundle, make_tiny_manifest, make_uniform

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "serving" / "examples" / "node"
NPM_S = 120.0
UNREACHABLE = re.compile(
    r"\b(?:EAI_AGAIN|ENOTFOUND|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|EIDLETIMEOUT|E5\d\d)\b"
)
"""What npm says where its registry cannot be reached; all else is a fault of ours."""


@dataclass(frozen=True)
class Example:
    """The example's folder, installed and generated."""

    folder: Path

    @contextmanager
    def begun(self, program: str, server: str, *words: object, token: str = "") -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            ["node", program, "--server", server, *map(str, words)],
            cwd=self.folder,
            env={**os.environ, "L2R2_TOKEN": token},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                yield process
            finally:
                process.kill()

    def run(self, program: str, server: str, *words: object, token: str = "") -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        with self.begun(program, server, *words, token=token) as process:
            out, err = process.communicate(timeout=PATIENCE_S)
        return process.returncode, out, err


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    major = int(
        subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout[1:].split(".")[0]
    )
    if major < 20:
        pytest.skip(f"node {major} is too old; the example needs 20")
    root = tmp_path_factory.mktemp("node")
    folder = root / "serving" / "examples" / "node"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("gen", "node_modules"))
    shutil.copytree(ROOT / "proto", root / "proto")
    install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--fetch-retries=1"]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=NPM_S)
    if done.returncode and UNREACHABLE.search(done.stderr):
        pytest.skip("the npm registry cannot be reached")
    assert done.returncode == 0, done.stderr
    done = subprocess.run(["npm", "run", "generate"], cwd=folder, capture_output=True, text=True, timeout=NPM_S)
    assert done.returncode == 0, done.stderr
    return Example(folder)


@pytest.fixture(scope="session")
def told(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with prediction sets."""
    policy = make_tiny_manifest().policy.model_copy(update={"coverage": 0.9, "set_threshold": 0.05})
    return make_tiny_bundle(tmp_path_factory.mktemp("node") / "tiny", policy=policy)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twelve, red and green by turns, and each file of another name."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(12):
        (folder / f"{number:02}.png").write_bytes(encode(make_photo((RED, GREEN)[number % 2])))
    return sorted(folder.iterdir())


def colours(out: str) -> dict[str, str]:
    """File → class; nothing is told twice."""
    found = re.findall(r"^(\S+): (\w+) [\d.]+ % \(tiny ", out, re.MULTILINE)
    assert len({name for name, _ in found}) == len(found)
    return dict(found)


def expected(photos: list[Path]) -> dict[str, str]:
    return {path.name: ("red", "green")[number % 2] for number, path in enumerate(photos)}


def as_shown(client: Client, path: Path, metadata: dict[str, str]) -> list[str]:
    """The lines that the example should print, said from what the Python client hears."""
    answer = client.recognize(path.read_bytes(), metadata)
    prediction, among = answer.prediction, answer.prediction.prediction_set
    shares = [
        f"{each.name} {100 * each.probability:.1f} %" for each in (prediction.answer, *(among.members if among else ()))
    ]
    lines = [f"{path.name}: {shares[0]} ({answer.bundle_name} {answer.bundle_version})"]
    if among:
        lines.append(f"  one of: {', '.join(shares[1:])} (right for {100 * among.coverage:.0f} of 100)")
    lines += ["  caution: "] * len(prediction.cautions)
    return lines + [f"  not known here: {source} {value}" for source, value in answer.unrecognized.items()]


def test_it_says_what_the_python_client_hears(example: Example, told: Bundle, tmp_path: Path) -> None:
    photographs = {"plain": make_photo(RED), "muddy": make_photo(MUDDY, DARK), "nothing": make_uniform((0, 60, 0))}
    paths = [tmp_path / f"{name}.png" for name in photographs]
    for path, pixels in zip(paths, photographs.values(), strict=True):
        path.write_bytes(encode(pixels))
    known = {"habitat": "lava", "month": "5"}
    with running(told) as place, place.client() as client:
        code, out, err = example.run("recognize.mjs", place.address, "--habitat", "lava", "--month", "5", *paths)
        wanted = [line for path in paths for line in as_shown(client, path, known)]
    assert (code, err) == (0, "")
    assert [re.sub(r"(?<=^  caution: ).*", "", line) for line in out.splitlines()] == wanted
    assert "  one of: red 9" in out
    assert "caution: nothing was found in it" in out


def test_it_has_words_for_every_caution() -> None:
    words = (EXAMPLE / "answers.mjs").read_text()
    assert set(re.findall(r"\[Caution\.(\w+)\]", words)) == {caution.name for caution in Caution}


def test_a_withheld_answer_is_not_shown(example: Example, tmp_path: Path) -> None:
    policy = make_tiny_manifest().policy.model_copy(
        update={"hazardous": ("red",), "coverage": 0.9, "set_threshold": 0.05}
    )
    (tmp_path / "muddy.png").write_bytes(encode(make_photo(MUDDY)))
    with running(make_tiny_bundle(tmp_path / "tiny", policy=policy)) as place:
        code, out, _ = example.run("recognize.mjs", place.address, tmp_path / "muddy.png")
    assert code == 0
    assert out.startswith("muddy.png: withheld (tiny ")
    assert "caution: a hazardous kind is possible" in out
    assert "red" not in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--month", "13"), r"INVALID_ARGUMENT l2r2/METADATA_ERROR month is '13'; expected .* \(field month\)"),
        (("--habitat", "x" * 300), r"INVALID_ARGUMENT l2r2/METADATA_ERROR .*\(field habitat\)"),
    ],
)
@pytest.mark.parametrize("program", ["recognize.mjs", "stream.mjs"])
def test_a_wrong_field_is_named(
    program: str, words: tuple[str, ...], said: str, example: Example, served: Running, photos: list[Path]
) -> None:
    code, out, err = example.run(program, served.address, *words, photos[0])
    assert (code, out) == (1, "")
    assert re.match(rf"{photos[0].name}: {said}", err), err


def test_one_bad_photograph_does_not_lose_the_others(
    example: Example, served: Running, photos: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "text.jpg").write_bytes(b"text")
    for program in ("recognize.mjs", "stream.mjs"):
        code, out, err = example.run(
            program, served.address, photos[0], tmp_path / "text.jpg", tmp_path / "none.jpg", photos[1]
        )
        assert code == 1
        assert colours(out) == expected(photos[:2])
        assert sorted(line.split(" ")[:2] for line in err.splitlines()) == [
            ["none.jpg:", "ENOENT:"],
            ["text.jpg:", "INVALID_ARGUMENT"],
        ]


def test_the_deadline_ends_a_call(example: Example, bundle: Bundle, photos: list[Path]) -> None:
    held = ChangedBundle(bundle, GatedLocalizer)
    with running(held) as place:
        held.localizer.gate.clear()
        code, out, err = example.run("recognize.mjs", place.address, "--timeout-ms", "300", photos[0])
        held.localizer.gate.set()
    assert (code, out) == (1, "")
    assert err.startswith(f"{photos[0].name}: DEADLINE_EXCEEDED")


def test_a_full_server_is_asked_again_when_it_said(example: Example, bundle: Bundle, photos: list[Path]) -> None:
    held = ChangedBundle(bundle, GatedLocalizer)
    with running(held, workers=1, max_queue=1) as place, place.stub() as stub:
        held.localizer.gate.clear()
        other = stub.Recognize.future(pb.RecognizeRequest(image=photos[1].read_bytes()))
        eventually(lambda: place.server.slots.taken == 1)
        with example.begun("recognize.mjs", place.address, photos[0]) as process:
            assert process.stderr is not None
            line = process.stderr.readline()
            held.localizer.gate.set()
            out, _ = process.communicate(timeout=PATIENCE_S)
        other.result(PATIENCE_S)
    found = re.fullmatch(r"00\.png: RESOURCE_EXHAUSTED l2r2/OVERLOADED .*; trying again in (\d+) ms\n", line)
    assert found, line
    assert int(found[1]) >= 1000 * RETRY_AFTER_S
    assert colours(out) == expected(photos[:1])
    assert process.returncode == 0


@pytest.mark.parametrize("program", ["recognize.mjs", "stream.mjs"])
def test_a_server_that_warms_up_is_waited_for(
    program: str, example: Example, bundle: Bundle, photos: list[Path]
) -> None:
    with running(bundle, warm=False) as place, example.begun(program, place.address, photos[0]) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        place.run(place.server.warm_up(bundle))
        out, err = process.communicate(timeout=PATIENCE_S)
    assert "FAILED_PRECONDITION l2r2/NOT_READY" in line
    assert colours(out) == expected(photos[:1]), err
    assert process.returncode == 0


def test_a_queue_over_a_connection_that_is_cut(example: Example, bundle: Bundle, photos: list[Path]) -> None:
    counted = ChangedBundle(bundle, GatedLocalizer)
    with running(counted) as place, proxied(place.address) as proxy:
        before = counted.localizer.reached
        proxy.cut_after = 4000  # a response has about 0.5 kB; each connection brings some
        code, out, err = example.run("stream.mjs", proxy.address, *photos)
        connections, reached = proxy.connections, counted.localizer.reached - before
    assert code == 0, err
    assert colours(out) == expected(photos)
    assert connections >= 2
    assert reached == len(photos), "a photograph was worked on twice"
    assert "answered before the connection broke" in out
    assert len(re.findall(r"^the queue: .* left, trying again in \d+ ms$", err, re.MULTILINE)) == connections - 1


def test_a_server_that_stays_away_ends_it(example: Example, photos: list[Path]) -> None:
    code, out, err = example.run("stream.mjs", "127.0.0.1:1", photos[0])
    assert (code, out) == (1, "")
    assert err.count("UNAVAILABLE") == 5
    assert err.endswith(f"not answered: {photos[0].name}\n")


def test_tls_certificate_and_token(example: Example, bundle: Bundle, photos: list[Path], tmp_path: Path) -> None:
    ca = trustme.CA()
    for name in ("127.0.0.1", "app.example"):
        cert = ca.issue_cert(name)
        cert.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        (tmp_path / f"{name}.pem").write_bytes(b"".join(part.bytes() for part in cert.cert_chain_pems))
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    (tmp_path / "tokens.toml").write_text(f'[tokens.app]\nsha256 = "{hash_of("one")}"\n')
    safe = TlsSettings(
        certificate=tmp_path / "127.0.0.1.pem", key=tmp_path / "127.0.0.1.key", client_ca=tmp_path / "ca.pem"
    )
    own = ("--certificate", tmp_path / "app.example.pem", "--key", tmp_path / "app.example.key")
    with running(
        bundle, credentials=credentials(safe), interceptors=[TokenInterceptor(Tokens(tmp_path / "tokens.toml"))]
    ) as place:

        def ask(*words: object, token: str) -> tuple[int, str, str]:
            return example.run(
                "recognize.mjs", place.address, "--ca", tmp_path / "ca.pem", *words, photos[0], token=token
            )

        code, out, err = ask(*own, token="one")
        assert (code, err) == (0, "")
        assert colours(out) == expected(photos[:1])
        code, _, err = ask(*own, token="two")
        assert code == 1
        assert "UNAUTHENTICATED l2r2/UNAUTHENTICATED no token" in err
        code, out, _ = ask("--timeout-ms", "1000", token="one")
        assert (code, out) == (1, "")


@pytest.mark.parametrize(
    ("words", "token", "said"),
    [
        ((), "one", "error: a token would be sent to field.example:50051 in plain text; give --ca"),
        (("--certificate", "own.pem"), "", "error: --certificate, --key and --ca go together"),
        (("--month", "May"), "", "error: --month is May; expected a whole number"),
    ],
)
def test_a_wrong_command_line_reaches_nobody(
    words: tuple[str, ...], token: str, said: str, example: Example, photos: list[Path]
) -> None:
    for program in ("recognize.mjs", "stream.mjs"):
        code, out, err = example.run(program, "field.example:50051", *words, photos[0], token=token)
        assert (code, out) == (2, "")
        assert err.splitlines() == [said, err.splitlines()[1]]
        assert err.splitlines()[1].startswith(f"usage: node {program}")


def test_the_lock_names_no_registry() -> None:
    lock = json.loads((EXAMPLE / "package-lock.json").read_text())
    packages = {name: each for name, each in lock["packages"].items() if name}
    assert packages
    for name, each in packages.items():
        assert "resolved" not in each, name
        assert each["integrity"].startswith("sha512-"), name
    assert not (EXAMPLE / ".npmrc").exists()
    assert (EXAMPLE / ".gitignore").read_text().split() == ["/gen/", "/node_modules/"]
