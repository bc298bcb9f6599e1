"""`l2r2` and `python -m l2r2`."""

import sys

from l2r2 import machine


def main() -> None:
    """Run the command line."""
    if sys.argv[1:2] == ["serve"]:
        machine.settle_memory()
    from l2r2.cli import main as run

    run()


if __name__ == "__main__":
    main()
