"""New versions of a bundle, found while it is served: loaded, warmed and swapped in with no call the worse for it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

from l2r2.bundle import load_bundle
from l2r2.errors import ConfigError
from l2r2_serving.bundles import OpenBundle, fetch, latest
from l2r2_serving.server import RecognitionServer

JITTER = 0.2
"""Of the time between looks, so that the servers of a fleet do not all fetch at once."""

OnSwap = Callable[[str, bool], None]
"""Called with the name of the bundle, and whether its new version was refused."""

_log = logging.getLogger(__name__)


class BundleWatcher:
    """Looks at one place again and again.

    A version that cannot be loaded, fails when it is warmed or has another name is refused: the old one serves on, and
    the same version is not tried again. A registry that cannot be reached, or gives no whole download, is asked again.
    """

    def __init__(
        self,
        name: str,
        place: str,
        tracking_uri: str | None,
        every_s: float,
        seen: str,
        on_swap: OnSwap = lambda _name, _bad: None,
    ) -> None:
        """Remember where to look.

        Args:
            name: Of the bundle that is served from there.
            place, tracking_uri: As for `find_bundle`.
            every_s: Seconds between looks.
            seen: What `latest` said of the version that is served.
        """
        self._name = name
        self._place, self._tracking_uri, self._every_s = place, tracking_uri, every_s
        self._seen, self._on_swap = seen, on_swap

    async def run(self, server: RecognitionServer) -> None:
        """Until cancelled; looks, loads and warms in a thread of its own."""
        pool = ThreadPoolExecutor(1, thread_name_prefix="l2r2-watcher")
        try:
            while True:
                await asyncio.sleep(self._every_s * (1 + random.uniform(-JITTER, JITTER)))  # noqa: S311
                await self.look(server, pool)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # a registry that hangs may not hold up a stop

    async def look(self, server: RecognitionServer, pool: Executor) -> None:
        """Once."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(pool, latest, self._place, self._tracking_uri)
            if found == self._seen:
                return
            folder = await loop.run_in_executor(pool, fetch, self._place, self._tracking_uri)
        except Exception as error:  # noqa: BLE001  an edge: whatever it is, the next look may do better
            _log.warning("%s cannot be looked at, the bundle serves on: %s", self._place, error or type(error).__name__)
            return
        self._seen = found  # whatever comes of it, it is not tried twice
        try:
            opened = await loop.run_in_executor(pool, self._load, server, folder)
        except Exception as error:  # noqa: BLE001  an edge: whatever is wrong with it, the old one serves on
            _log.error("%s: the new version is refused, the old one serves on: %s", self._place, error)
            self._on_swap(self._name, True)
            return
        server.put(opened)
        _log.warning("%s: bundle %s %s serves from now on", self._place, opened.name, opened.version)
        self._on_swap(self._name, False)

    def _load(self, server: RecognitionServer, folder: Path) -> OpenBundle:
        bundle = load_bundle(folder)
        if bundle.manifest.name != self._name:
            raise ConfigError(f"it is named {bundle.manifest.name!r}; expected {self._name!r}, which callers ask for")
        opened = server.open(bundle)
        opened.warm_up()
        return opened
