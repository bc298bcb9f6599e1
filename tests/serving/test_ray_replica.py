"""A replica without Ray around it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from l2r2.bundle import Bundle
from l2r2.errors import ArtifactError, ConfigError
from l2r2_serving.observing import Call, Item
from l2r2_serving.ray_replica import Replica
from l2r2_serving.settings import ServerSettings
from l2r2_serving.v1 import recognition_pb2 as pb
from tests.serving.running import PATIENCE_S
from tests.tiny import make_tiny_bundle


def test_another_version_is_taken_up_and_another_bundle_refused(bundle: Bundle, tmp_path: Path) -> None:
    later = make_tiny_bundle(tmp_path / "later", created="2025-02-01T00:00:00Z")
    other = make_tiny_bundle(tmp_path / "other", name="other")
    replica = Replica(str(bundle.folder), ServerSettings(workers=2))

    def served() -> str:
        (info,) = asyncio.run(replica.ListBundles(pb.ListBundlesRequest(), Told())).bundles
        return f"{info.name} {info.version}"

    assert served() == f"tiny {bundle.version}"
    asyncio.run(replica.reconfigure({"bundle": str(later.folder)}))
    assert later.version != bundle.version
    assert served() == f"tiny {later.version}"
    with pytest.raises(ConfigError, match="is bundle 'other'; expected another version of 'tiny'"):
        asyncio.run(replica.reconfigure({"bundle": str(other.folder)}))
    with pytest.raises(ArtifactError):
        asyncio.run(replica.reconfigure({"bundle": str(tmp_path / "none")}))
    assert served() == f"tiny {later.version}"
    asyncio.run(replica.check_health())


def test_a_busy_replica_is_alive_and_a_stuck_one_is_not(bundle: Bundle) -> None:
    """However many photographs wait: those that are answered are sign enough."""
    replica, gate = Replica(str(bundle.folder), ServerSettings(workers=1)), threading.Event()
    held = [replica._pool.submit(gate.wait, PATIENCE_S) for _ in range(2)]

    async def use() -> None:
        check = asyncio.create_task(replica.check_health())
        await asyncio.sleep(0.2)
        assert not check.done()
        replica._pulse.item(Call("m"), Item("tiny", code="INVALID_ARGUMENT"))
        await asyncio.sleep(0.2)
        assert not check.done()
        replica._pulse.item(Call("m"), Item("tiny", code="OK", answer=object()))
        async with asyncio.timeout(PATIENCE_S):
            await check

    asyncio.run(use())
    assert not any(each.done() for each in held)
    gate.set()
    asyncio.run(replica.check_health())


class Told:
    """What Ray passes on of a call, as far as it is looked at."""

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return []

    def auth_context(self) -> dict[str, Any]:
        return {}

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def set_trailing_metadata(self, pairs: object) -> None:
        pass
