from collections.abc import AsyncIterator

import pytest
from client_support import FakeNode


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
