"""The probe for containers: exit codes by health, over plain text and TLS."""

import subprocess
import sys
from pathlib import Path

import pytest
import trustme

from l2r2.bundle import Bundle
from l2r2_serving import probe
from l2r2_serving.server import SERVICE
from l2r2_serving.tls import credentials
from tests.serving.running import PATIENCE_S, Running, running
from tests.serving.test_tls import settings


def test_the_probe_tells_serving_from_the_rest(
    served: Running, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert probe.main([served.address]) == 0
    assert probe.main([served.address, "--service", f"{SERVICE}/tiny"]) == 0
    assert capsys.readouterr() == ("", "")
    assert probe.main([served.address, "--service", f"{SERVICE}/none"]) == 1
    assert "NOT_FOUND" in capsys.readouterr().err
    with running(bundle, warm=False) as place:
        assert probe.main([place.address]) == 1
        assert capsys.readouterr().err == f"{place.address}: NOT_SERVING\n"
    assert probe.main([place.address, "--timeout-s", "20"]) == 1
    assert "UNAVAILABLE" in capsys.readouterr().err


def test_the_probe_speaks_tls(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine, other = trustme.CA(), trustme.CA()
    safe = settings(tmp_path, mine.issue_cert("l2r2"), mine)
    other.cert_pem.write_to_path(tmp_path / "other.pem")
    own = ("--certificate", str(safe.certificate), "--key", str(safe.key))
    with running(bundle, credentials=credentials(safe)) as place:
        asked = [place.address, "--name", "l2r2", "--timeout-s", "2"]
        for trusted in (tmp_path / "ca.pem", safe.certificate):
            assert probe.main([*asked, "--tls", str(trusted), *own]) == 0
        assert probe.main([*asked, "--tls", str(tmp_path / "ca.pem")]) == 1
        assert probe.main([*asked, "--tls", str(tmp_path / "other.pem"), *own]) == 1
        assert probe.main([place.address, "--tls", str(tmp_path / "none.pem")]) == 1
    assert "none.pem cannot be read: No such file or directory" in capsys.readouterr().err


def test_the_probe_is_light() -> None:
    check = "import sys, l2r2_serving.probe; sys.exit(any(n in sys.modules for n in ('numpy', 'l2r2', 'pydantic')))"
    assert subprocess.run([sys.executable, "-c", check], timeout=PATIENCE_S).returncode == 0
