"""`l2r2 token`: listing, certificates, and several at once."""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from l2r2_serving.auth import Certificate, hash_of, read_callers
from l2r2_serving.token_command import token as token_command
from tests.serving.disks import filled, small_disk

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "t.toml"


@pytest.fixture
def command(file: Path) -> Command:
    app = typer.Typer()
    app.command()(token_command)

    def run(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, [*words, "--file", str(file)])
        refused = done.exception is not None and not isinstance(done.exception, SystemExit)
        return done.exit_code, str(done.exception) if refused else done.output

    return run


def test_callers_are_listed_without_hashes(command: Command, file: Path) -> None:
    file.write_text(
        f'[tokens.app]\nsha256 = "{hash_of("one")}"\nmethods = ["Recognize", "GetBundle"]\nexpires = 2999-01-31\n'
        f'[tokens.gone]\nsha256 = "{hash_of("two")}"\nexpires = 2020-01-31\n'
        '[certificates.lab]\nname = "lab.example"\nmethods = ["inference.GRPCInferenceService"]\n'
    )
    before = file.read_bytes()
    code, said = command("--list")
    assert code == 0
    assert said.splitlines() == [
        "CALLER  KNOWN BY                 MAY CALL                        UNTIL",
        "app     token                    Recognize, GetBundle            2999-01-31",
        "gone    token                    all of l2r2.v1                  2020-01-31, expired",
        "lab     certificate lab.example  inference.GRPCInferenceService  for ever",
    ]
    assert file.read_bytes() == before


def test_a_list_wants_a_file(command: Command) -> None:
    assert "is no token file: No such file" in command("--list")[1]
    assert "no caller is named; give a name, or --list" in command()[1]


def test_a_certificate_is_listed_and_taken_away(command: Command, file: Path) -> None:
    assert command("lab", "--certificate", "spiffe://example.org/lab", "--methods", "Recognize") == (0, "")
    assert read_callers(file).certificates == {
        "lab": Certificate(name="spiffe://example.org/lab", methods=("Recognize",))
    }
    assert "already" in command("lab", "--certificate", "lab.example")[1]
    assert "already" in command("lab-too", "--certificate", "spiffe://example.org/lab")[1]
    code, made = command("lab")  # a token besides
    assert code == 0
    found = read_callers(file)
    assert (set(found.tokens), found.tokens["lab"].sha256) == ({"lab"}, hash_of(made.strip()))
    assert set(found.certificates) == {"lab"}
    command("site", "--certificate", "site.example")
    assert command("lab", "--revoke")[0] == 0
    found = read_callers(file)
    assert (set(found.tokens), set(found.certificates)) == (set(), {"site"})


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a\x00"])
def test_a_certificate_needs_a_name(name: str, command: Command, file: Path) -> None:
    assert "expected a name as it stands in it" in command("lab", "--certificate", name)[1]
    assert not file.exists()


def test_what_others_wrote_is_written_back(command: Command, file: Path) -> None:
    odd = 'he said "no" \\ then'
    file.write_text(f"[tokens.'a.b']\nsha256 = '{hash_of('x')}'\n[certificates.'c d']\nname = '{odd}'\n")
    before = read_callers(file)
    assert command("app")[0] == 0
    assert command("app", "--revoke")[0] == 0
    assert read_callers(file) == before


def test_a_method_that_there_is_not_is_refused(command: Command, file: Path) -> None:
    assert "no method 'Recognise'; expected some of Recognize, " in command("app", "--methods", "Recognise")[1]
    assert not file.exists()


@pytest.mark.parametrize("days", ["0", "36501", "99999999999"])
def test_days_have_bounds(days: str, command: Command, file: Path) -> None:
    code, said = command("app", "--days", days)
    assert (code, file.exists()) == (2, False)
    assert "days" in said


@pytest.mark.parametrize("methods", ["", ",", " "])
def test_no_method_is_not_all_of_them(methods: str, command: Command, file: Path) -> None:
    assert "names none; expected some of Recognize, " in command("app", "--methods", methods)[1]
    assert not file.exists()
    file.write_text(f'[tokens.app]\nsha256 = "{hash_of("one")}"\nmethods = []\n')
    assert command("--list")[1].splitlines()[1].split()[2] == "nothing"
    assert command("other")[0] == 0
    found = read_callers(file).tokens
    assert (found["app"].methods, found["other"].methods) == ((), None)
    assert not found["app"].may_call("/l2r2.v1.RecognitionService/Recognize")


def test_a_full_disk_leaves_the_file_as_it_was(command: Command, file: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path, 2**16) as disk:
        command("app")
        before = file.read_bytes()
        filled(disk, 0)
        full = f"cannot write {file}: No space left on device; nothing was changed, make room and run it again"
        assert command("other") == (1, full)
        assert file.read_bytes() == before
        assert not list(disk.glob("*.tmp"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_whose_the_file_is_stays_as_it_was(command: Command, file: Path) -> None:
    """The server must be able to read it, or it would go on with the old one."""
    command("app")
    try:
        os.chown(file, 10001, 10002)
    except OSError as error:
        pytest.skip(f"root gives nothing away here: {error}")
    command("app", "--revoke")
    assert (file.stat().st_uid, file.stat().st_gid) == (10001, 10002)


def test_a_file_that_cannot_be_given_back_is_left_alone(
    command: Command, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("app")
    before = file.read_bytes()

    def refused(*_given: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(shutil, "copymode", refused)
    assert "cannot be given to them: Operation not permitted; nothing was changed" in command("app", "--revoke")[1]
    assert file.read_bytes() == before
    assert [each.name for each in file.parent.iterdir() if not each.name.endswith(".lock")] == [file.name]


def test_who_may_read_the_file_stays_as_it_was(command: Command, file: Path) -> None:
    command("app")
    file.chmod(0o640)
    command("other")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


ADDING = """
import sys
from pathlib import Path
from l2r2_serving.token_command import token
print("ready", flush=True)
sys.stdin.readline()
for n in range(int(sys.argv[3])):
    token(f"{sys.argv[2]}-{n}", file=Path(sys.argv[1]))
    if n % 2:
        token(f"{sys.argv[2]}-{n}", file=Path(sys.argv[1]), revoke=True)
"""


def test_several_at_once_lose_nothing(file: Path) -> None:
    who, each = "abcd", 10
    adding = [
        subprocess.Popen(
            [sys.executable, "-c", ADDING, str(file), name, str(each)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in who
    ]
    for one in adding:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    for one in adding:  # all together
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    made = {name: one.communicate(timeout=60)[0].split() for name, one in zip(who, adding, strict=True)}
    assert [one.returncode for one in adding] == [0] * len(who)
    found = read_callers(file).tokens
    assert set(found) == {f"{name}-{n}" for name in who for n in range(0, each, 2)}
    assert all(found[f"{name}-{n}"].sha256 == hash_of(made[name][n]) for name in who for n in range(0, each, 2))
