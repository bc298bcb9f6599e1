"""One tiny bundle and one server for all tests that do not change them."""

from collections.abc import Iterator

import pytest

from l2r2.bundle import Bundle
from l2r2_serving.bundles import OpenBundle, open_bundle
from tests.serving.running import Running, running
from tests.tiny import make_tiny_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_tiny_bundle(tmp_path_factory.mktemp("serving") / "tiny")


@pytest.fixture(scope="session")
def opened(bundle: Bundle) -> OpenBundle:
    return open_bundle(bundle)


@pytest.fixture(scope="session")
def served(bundle: Bundle) -> Iterator[Running]:
    with running(bundle) as place:
        yield place
