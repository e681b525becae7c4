from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from client_support import FakeNode
from sec_client.kit import Store
from stores_support import KINDS, Stores, stores_of


@pytest.fixture
async def node() -> AsyncIterator[FakeNode]:
    fake = FakeNode()
    await fake.start()
    yield fake
    await fake.die()


@pytest.fixture
async def other_node() -> AsyncIterator[FakeNode]:
    fake = FakeNode()
    await fake.start()
    yield fake
    await fake.die()


@pytest.fixture(params=KINDS)
async def stores(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stores]:
    """A database for each kind of store in turn."""
    made = stores_of(request.param, tmp_path, request)
    yield made
    await made.dispose()


@pytest.fixture
def store(stores: Stores) -> Store:
    """Each kind of store in turn."""
    made: Store = stores.make()
    return made
