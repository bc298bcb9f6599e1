"""Where the starter data's cut-outs and scenes come from: two Debian packages, fetched with apt's own client.

Nothing is installed and no root is needed: apt keeps its lists and its cache in a folder of ours.
"""

from __future__ import annotations

import getpass
import shutil
import subprocess
import tempfile
from pathlib import Path

from l2r2.errors import BackendError, BackendMissing
from l2r2.weights import cache_folder

PACKAGES = ("tuxpaint-stamps-default", "tuxpaint-data")
"""161 MB and 8 MB to download; GPL-2."""

STAMPS, SCENES = "usr/share/tuxpaint/stamps", "usr/share/tuxpaint/templates"


def fetch_sources() -> tuple[Path, Path]:
    """Give the folders of stamps and scenes, fetching them on first use.

    Raises:
        BackendMissing: there is no apt-get or dpkg-deb.
        BackendError: apt could not fetch a package.
    """
    kept = cache_folder() / "starter"
    if not kept.is_dir():
        for program in ("apt-get", "dpkg-deb"):
            if shutil.which(program) is None:
                raise BackendMissing(
                    f"{program} is not installed, and the starter photographs come from Debian packages; get "
                    f"{' and '.join(PACKAGES)} another way and pass --stamps DIR --scenes DIR "
                    f"(their {STAMPS} and {SCENES})"
                )
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            _fetch(Path(folder))
            (Path(folder) / "root").rename(kept)
    return kept / STAMPS, kept / SCENES


def _fetch(folder: Path) -> None:
    for name in ("lists/partial", "cache/archives/partial", "root"):
        (folder / name).mkdir(parents=True)
    options = [
        f"Dir::State::Lists={folder / 'lists'}",
        f"Dir::Cache={folder / 'cache'}",
        f"APT::Sandbox::User={getpass.getuser()}",
        "Acquire::Languages=none",
    ]
    apt = ["apt-get", "--quiet", *(word for option in options for word in ("--option", option))]
    _run([*apt, "update"], folder)
    _run([*apt, "download", *PACKAGES], folder)
    for package in sorted(folder.glob("*.deb")):
        _run(["dpkg-deb", "--extract", str(package), str(folder / "root")], folder)


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("E:")] or done.stderr.splitlines()
        raise BackendError(f"{command[0]} failed: {(lines or ['no message'])[-1]}; check the network and apt's sources")
