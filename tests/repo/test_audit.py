"""The audit never says that all is well when nobody was asked."""

from pathlib import Path

import pytest

from tests.repo import audit

GOOD = {"name": "numpy", "version": "1.0", "vulns": []}
BAD = {"name": "old", "version": "0.1", "vulns": [{"id": "CVE-1", "fix_versions": ["0.2", "0.3"]}]}
HOPELESS = {"name": "odd", "version": "9", "vulns": [{"id": "CVE-2", "fix_versions": []}]}
UNKNOWN = {"name": "own", "skip_reason": "Dependency not found on PyPI and could not be audited: own (1)"}


@pytest.mark.parametrize("packages", [[], [UNKNOWN], [UNKNOWN, UNKNOWN]])
def test_nothing_known_is_not_all_well(packages: list[dict[str, object]]) -> None:
    assert audit.report(packages) == (["not audited: no connection"], 0)


def test_all_well() -> None:
    assert audit.report([GOOD, UNKNOWN]) == (
        ["audited: 1 packages, 0 known vulnerabilities", "not audited, unknown to the data base: own"],
        0,
    )


def test_a_vulnerability_fails() -> None:
    assert audit.report([GOOD, BAD, HOPELESS]) == (
        [
            "old 0.1: CVE-1, mended in 0.2, 0.3",
            "odd 9: CVE-2, mended in no version",
            "audited: 3 packages, 2 known vulnerabilities",
        ],
        1,
    )


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ('print(\'{"dependencies": [{"name": "pip", "skip_reason": "unknown"}]}\')', "no connection"),
        ("raise SystemExit('no such host')", "no connection"),
    ],
)
def test_where_nobody_answers_one_question_is_asked(
    says: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pip_audit.py").write_text(f"open({str(tmp_path / 'asked')!r}, 'a').write('x')\n{says}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert audit.main([]) == 0
    assert expected in capsys.readouterr().out
    assert (tmp_path / "asked").read_text() == "x"


def test_without_pip_audit_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(audit, "find_spec", lambda _name: None)
    assert audit.main([]) == 2
    assert "pip-audit is not installed" in capsys.readouterr().out
