"""`python -m l2r2`."""

from l2r2.cli import main

if __name__ == "__main__":
    main()
