"""What an SEC node of each released version wrote is read, and gone on with, by this one. docs/compatibility.md has the policy."""

import base64
import json
from collections import defaultdict
from pathlib import Path

import pytest
from inprocess_support import Cluster, World, cluster
from sec_client import SagaState
from sec_client.aio import Client
from sec_model.commands import NodePath, RetryUndo
from sec_protos.v1 import records_pb2
from waiting_support import eventually

from sec.core.records import SagaId
from sec.store.keys import Keys
from sec.store.kv import Get, Put, Txn, prefix_end

RELEASED = sorted(Path(__file__).with_name("released").glob("*.jsonl"))
KEYS = Keys()
FURTHER = 100
"""Revisions behind the last of those keys: an owner, whose key is not among them, may have had a later one."""
FOR_EVER = {"keep_done_s": 0.0, "keep_undone_s": 0.0}


def restore(made: Cluster, file: Path) -> None:
    """Writes the keys at the revisions at which they were written: the epoch of a saga's first owner is a revision."""
    by_revision = defaultdict(list)
    for line in file.read_text().splitlines():
        written = json.loads(line)
        by_revision[written["revision"]].append(Put(written["key"].encode(), base64.b64decode(written["value"])))
    for revision in range(made.etcd.revision + 1, max(by_revision) + FURTHER):
        made.etcd.txn(Txn(then=by_revision.get(revision, [Put(b"/elsewhere", b"")])))


@pytest.mark.parametrize("file", RELEASED, ids=lambda file: file.stem)
async def test_the_sagas_of_an_older_node_are_read_and_gone_on_with(file: Path) -> None:
    world = World()
    async with cluster() as made:
        restore(made, file)
        await made.add("sec-2", **FOR_EVER)
        async with made.client() as client:
            assert await kinds(client, "done") == [
                "created",
                "start_requested",
                "started",
                "succeeded",
                "started",
                "succeeded",
                "done",
            ]
            states = {saga_id: (await client.get(saga_id)).state for saga_id in ("done", "undone", "stuck", "created", "running")}
            assert states == {
                "done": SagaState.DONE,
                "undone": SagaState.UNDONE,
                "stuck": SagaState.STUCK,
                "created": SagaState.CREATED,
                "running": SagaState.RUNNING,
            }
            done = await client.get("done")
            assert done.params.value() == {"of": "an older node"}
            assert done.summary.labels == {"kept": "yes"}
            assert (await client.wait("done")).output == {"node": "two", "inputs": {}}
            await made.serve(world.server())
            await client.start("created")
            await client.command("stuck", RetryUndo(NodePath("sticks")))
            assert (await client.wait("created", timeout_s=30)).state is SagaState.DONE
            assert (await client.wait("running", timeout_s=30)).state is SagaState.DONE
            assert (await client.wait("stuck", timeout_s=30)).state is SagaState.UNDONE
    ran = {(call.saga_id, call.node, call.phase.value) for call in world.calls}
    assert ran == {
        ("created", "one", "do"),
        ("created", "two", "do"),
        ("running", "half", "do"),
        ("running", "last", "do"),
        ("stuck", "sticks", "undo"),
    }
    [half] = (call for call in world.calls if call.node == "half")
    assert half.key == f"{half.saga_uid}/half"
    assert half.attempt == 2  # the first one is in the log


async def test_a_record_of_a_newer_node_makes_its_saga_corrupt_and_no_other() -> None:
    """Unknown kinds fail closed: a saga whose log has one is not driven, however small the difference may be."""
    async with cluster() as made:
        restore(made, RELEASED[0])
        prefix = KEYS.log(SagaId("running"))
        last = made.etcd.get(Get(prefix, prefix_end(prefix))).items[-1]
        batch = records_pb2.RecordBatch.FromString(last.value)
        first = int(last.key.removeprefix(prefix), 16)
        newer = records_pb2.Record.FromString(b"\xc2\x3e\x00")  # an empty message as field 1000, which no version has
        unknown = records_pb2.RecordBatch(epoch=batch.epoch, writer=batch.writer, records=[newer])
        made.etcd_put(KEYS.log_batch(SagaId("running"), first + len(batch.records)), unknown.SerializeToString())
        await made.add("sec-2", **FOR_EVER)
        async with made.client() as client:

            async def is_corrupt() -> bool:
                return (await client.get("running")).state is SagaState.CORRUPT

            await eventually(is_corrupt)
            assert (await client.get("done")).state is SagaState.DONE
            assert (await client.get("stuck")).state is SagaState.STUCK


async def kinds(client: Client, saga_id: str) -> list[str]:
    return [record.kind async for record in client.log(saga_id)]
