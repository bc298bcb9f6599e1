"""`python -m tests.bench [NAME …]`: run the benchmarks of these modules (of all), print and keep the figures."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib import import_module
from pathlib import Path

from l2r2.files import write_text
from tests.bench.measure import Figure

MODULES = ("fusing", "decoding", "exporting", "serving_memory", "serving", "peers")
OUT = Path("bench.json")


def main(names: list[str]) -> int:
    """Merge into what `OUT` holds, so that one benchmark can be taken again."""
    unknown = set(names) - set(MODULES)
    if unknown:
        print(f"no benchmark {min(unknown)!r}; expected {', '.join(MODULES)}", file=sys.stderr)
        return 2
    known: dict[str, Figure] = json.loads(OUT.read_text(encoding="utf-8")) if OUT.is_file() else {}
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; median (middle half)")
    for name in names or MODULES:
        for figure, found in import_module(f"tests.bench.{name}").figures():
            known[figure] = found
            middle = f"({found['low']:.4g}–{found['high']:.4g})"
            print(f"{figure:32} {found['value']:10.4g} {found['unit']:12} {middle}, n = {found['n']}", flush=True)
            write_text(OUT, json.dumps(known, indent=2, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
