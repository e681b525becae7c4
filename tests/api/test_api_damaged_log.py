"""A log that is damaged: what stands before the damage can be read, and the reader is told that it is not all."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from click.testing import CliRunner, Result
from inprocess_support import World, chain, cluster
from sec_client import SagaCorrupt, SagaState
from sec_client.aio import Client
from sec_protos.v1 import coordinator_pb2 as pb
from sec_protos.v1 import coordinator_pb2_grpc
from secctl.__main__ import cli as secctl

from sec.core.records import SagaId
from sec.store.kv import Get, prefix_end

ID = "damaged"


@dataclass
class Damaged:
    """A saga that is done, and whose log is damaged from the record `first` on. `read` are the numbers of those before it."""

    address: str
    stub: Any
    client: Client
    first: int

    @property
    def read(self) -> list[int]:
        return list(range(1, self.first))

    @property
    def problem(self) -> str:
        return f'Saga "{ID}" cannot be read. The records from {self.first} on are damaged: '

    async def secctl(self, *arguments: str) -> Result:
        given = ["--sec", self.address, "saga", "log", ID, *arguments]
        return await asyncio.to_thread(CliRunner().invoke, secctl, given)


@pytest.fixture(params=[0, 2], ids=["from the first record on", "later on"])
async def damaged(request: pytest.FixtureRequest) -> AsyncIterator[Damaged]:
    async with cluster("n1") as c, c.client() as client, grpc.aio.insecure_channel(c.members["n1"].address) as channel:
        await c.serve(World().server())
        assert (await client.run(chain("a", "b", "c"), saga_id=ID, timeout_s=20)).state is SagaState.DONE
        log = c.members["n1"].node.keys.log(SagaId(ID))
        item = c.etcd.get(Get(log, prefix_end(log))).items[request.param]
        c.etcd_put(item.key, b"\xff\xff\xff")
        first = int(item.key.rpartition(b"/")[2], 16)
        yield Damaged(c.members["n1"].address, coordinator_pb2_grpc.CoordinatorStub(channel), client, first)


@pytest.mark.parametrize("limit", [1, 0])
async def test_the_last_page_says_that_it_is_not_all(damaged: Damaged, limit: int) -> None:
    read, sequence = [], 1
    while sequence:
        message = pb.GetSagaLogRequest(saga_id=ID, from_sequence=sequence, limit=limit)
        page = await damaged.stub.GetSagaLog(message, timeout=10)
        read += [r.sequence for r in page.records]
        sequence = page.next_sequence
        assert bool(page.problem) == (not sequence), "on the last page and on no other"
    assert page.problem.startswith(damaged.problem)
    assert read == damaged.read


async def test_who_asks_behind_the_damage_is_told_too(damaged: Damaged) -> None:
    page = await damaged.stub.GetSagaLog(pb.GetSagaLogRequest(saga_id=ID, from_sequence=1000), timeout=10)
    assert (list(page.records), page.next_sequence) == ([], 0)
    assert page.problem.startswith(damaged.problem)


async def test_the_client_raises_behind_the_last_record(damaged: Damaged) -> None:
    read = []

    async def collect() -> None:
        async for record in damaged.client.log(ID):
            read.append(record.sequence)  # noqa: PERF401 # up to the error

    with pytest.raises(SagaCorrupt) as caught:
        await collect()
    assert read == damaged.read
    assert caught.value.message.startswith(damaged.problem)
    assert caught.value.saga_id == ID


async def test_secctl_shows_what_there_is_and_fails(damaged: Damaged) -> None:
    shown = await damaged.secctl()
    assert shown.exit_code == 4
    assert [int(line.split()[0]) for line in shown.stdout.splitlines()] == damaged.read
    assert shown.stderr.startswith(f"error: {damaged.problem}")
    told = await damaged.secctl("--output", "json")
    assert told.exit_code == 4
    found = json.loads(told.stdout)
    assert [r["sequence"] for r in found["records"]] == damaged.read
    assert found["problem"].startswith(damaged.problem)


async def test_an_exported_file_says_where_it_ends(damaged: Damaged, tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    exported = await damaged.secctl("--export", str(file))
    assert exported.exit_code == 4
    assert exported.stdout == f"{len(damaged.read)} records were written to {file}.\n"
    assert exported.stderr.startswith(f"error: {damaged.problem}")
    header, *records, end = [json.loads(line) for line in file.read_text().splitlines()]
    assert header["corrupt"].startswith(damaged.problem)
    assert [int(r["sequence"]) for r in records] == damaged.read
    assert list(end) == ["problem"]
    assert end["problem"].startswith(damaged.problem)


async def test_a_log_that_is_whole_has_no_problem() -> None:
    async with cluster("n1") as c, c.client() as client, grpc.aio.insecure_channel(c.members["n1"].address) as channel:
        await client.submit(chain("a"), saga_id="whole", start=False)
        stub = coordinator_pb2_grpc.CoordinatorStub(channel)
        page = await stub.GetSagaLog(pb.GetSagaLogRequest(saga_id="whole"), timeout=10)
        assert (len(page.records), page.problem) == (1, "")
