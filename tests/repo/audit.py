"""Known vulnerabilities of what is installed, for the report: `python -m tests.repo.audit`; needs pip-audit.

Exit code 0: none is known, or there was nobody to ask, which is said; 1: some are; 2: pip-audit is not installed.
Further arguments are pip-audit's, such as --ignore-vuln ID.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PROBE = "pip"
"""Asked about first, alone: every data base knows it, so where it is unknown nothing else need be asked."""

PROBE_S, AUDIT_S = 60, 900
NOT_AUDITED = "not audited: no connection"


def main(arguments: list[str]) -> int:
    """Ask and report."""
    if find_spec("pip_audit") is None:
        print("not audited: pip-audit is not installed; run: pip install 'l2r2[dev]'")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        pin = Path(folder) / "probe.txt"
        pin.write_text(f"{PROBE}=={version(PROBE)}\n", encoding="utf-8")
        probed = ask(["--requirement", str(pin), "--no-deps", "--disable-pip"], PROBE_S)
    if not any("vulns" in each for each in probed):
        print(f"{NOT_AUDITED} to a data base of vulnerabilities")
        return 0
    lines, code = report(ask(["--skip-editable", *arguments], AUDIT_S))
    print("\n".join(lines))
    return code


def ask(arguments: list[str], timeout_s: float) -> list[dict[str, Any]]:
    """What pip-audit says of each package; nothing where it could not ask."""
    words = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off", "--timeout", "10"]
    try:
        done = subprocess.run([*words, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False)
        return list(json.loads(done.stdout)["dependencies"])
    except (subprocess.TimeoutExpired, json.JSONDecodeError, KeyError):
        return []


def report(packages: list[dict[str, Any]]) -> tuple[list[str], int]:
    """Lines and exit code for what pip-audit said.

    Args:
        packages: `name`, and either `skip_reason` or `version` and `vulns` (`id`, `fix_versions`).
    """
    known = [each for each in packages if "vulns" in each]
    if not known:
        return [NOT_AUDITED], 0
    lines = [
        f"{each['name']} {each['version']}: {found['id']}, mended in {', '.join(found['fix_versions']) or 'no version'}"
        for each in known
        for found in each["vulns"]
    ]
    skipped = sorted(each["name"] for each in packages if "vulns" not in each)
    told = [f"audited: {len(known)} packages, {len(lines)} known vulnerabilities"]
    if skipped:
        told.append(f"not audited, unknown to the data base: {', '.join(skipped)}")
    return lines + told, int(bool(lines))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
