"""Marks tests with the rows that they stand for, and runs the cluster of those that need one."""

from collections.abc import AsyncIterator, Iterator

import conformance_paths  # noqa: F401 # first: the others are found by it
import pytest
from conformance_rows import ROWS
from conformance_support import Recoveries, Theatre
from sec_client import aio as sec_aio

from sec.dev.cluster import DevCluster
from sec.dev.etcd import EmbeddedEtcd

PREFIX = "/conformance"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Writes row and level into the reports, where tools/conformance.py finds them. A row that does not exist is an error."""
    for item in items:
        for mark in item.iter_markers("conformance"):
            row, level = mark.kwargs["row"], mark.kwargs["level"]
            if row not in ROWS or level not in ROWS[row].levels:
                raise pytest.UsageError(
                    f'{item.nodeid} stands for the row "{row}" at the {level}, which is not in conformance_rows.py.'
                )
            item.user_properties.append(("conformance", f"{row}@{level}"))


@pytest.fixture(scope="session")
def _theatre(etcd: EmbeddedEtcd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Theatre]:
    folder = tmp_path_factory.mktemp("conformance")
    with DevCluster(folder / "sec", etcd_endpoints=etcd.endpoints, prefix=PREFIX, lease_ttl_s=2) as cluster:
        theatre = Theatre(cluster, folder, PREFIX)
        theatre.start_servers()
        yield theatre
        theatre.stop_servers()


@pytest.fixture
async def theatre(_theatre: Theatre) -> Theatre:
    """The cluster with all of its nodes up, nothing held, and every action offered everywhere."""
    await _theatre.ready()
    return _theatre


@pytest.fixture
async def client(theatre: Theatre) -> AsyncIterator[sec_aio.Client]:
    async with theatre.client() as client:
        yield client


@pytest.fixture(scope="session")
def _recoveries() -> Recoveries:
    return Recoveries()


@pytest.fixture
async def recoveries(theatre: Theatre, _recoveries: Recoveries) -> Recoveries:
    """The sagas that were recovered: all of them in one restart of the cluster, made when the first test wants it."""
    if _recoveries.tried and not _recoveries.after:
        pytest.fail("The sagas could not be recovered: see the first test that wanted them.")
    if not _recoveries.tried:
        await _recoveries.make(theatre)
    return _recoveries
