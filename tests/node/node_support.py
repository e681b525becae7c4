"""What the tests of SEC nodes share: commands that are waited for, sagas with a deadline, and a look at logs and drivers."""

import asyncio

import grpc.aio
from inprocess_support import Cluster, Member
from sec_client.aio import Client
from sec_model import Deadline, Definition, RetryPolicy
from sec_model.codec import deadline_to_proto, definition_to_proto
from sec_model.commands import Command
from sec_protos.v1 import coordinator_pb2, coordinator_pb2_grpc
from waiting_support import eventually, until

from sec.core.records import Commanded, Record, SagaId
from sec.node.driver import SagaDriver
from sec.store.election import Leadership
from sec.store.kv import Get, prefix_end

PATIENT = RetryPolicy(max_attempts=1000, initial_backoff_s=3600, max_backoff_s=3600)
"""A call that was not answered is made again after an hour: what comes sooner comes for another reason."""


async def give(client: Client, saga_id: str, command: Command) -> None:
    """Gives a command and waits until its owner has recorded it."""
    command_id = await client.command(saga_id, command)

    async def recorded() -> bool:
        return command_id in [r.fields.get("command_id") async for r in client.log(saga_id)]

    await eventually(recorded)


async def submit_with_deadline(member: Member, definition: Definition, saga_id: str, deadline: Deadline) -> None:
    request = coordinator_pb2.SubmitSagaRequest(
        saga_id=saga_id, definition=definition_to_proto(definition), deadline=deadline_to_proto(deadline)
    )
    async with grpc.aio.insecure_channel(member.address) as channel:
        await coordinator_pb2_grpc.CoordinatorStub(channel).SubmitSaga(request, timeout=10)


async def records_of(member: Member, saga_id: str) -> list[Record]:
    """The log of a saga as the store has it, without what its records are wrapped in."""
    return [entry.record for entry in (await member.node.sagas.load(SagaId(saga_id))).entries]


async def refusals_of(member: Member, saga_id: str) -> list[str]:
    """Why commands that were taken up had no effect; an empty text for each that had one."""
    return [record.refused for record in await records_of(member, saga_id) if isinstance(record, Commanded)]


async def driver_of(cluster: Cluster, saga_id: str) -> SagaDriver:
    """Waits until somebody drives a saga."""
    await until(lambda: cluster.owner_of(saga_id))
    owner = cluster.owner_of(saga_id)
    assert owner is not None
    return owner.node.owner.drivers[SagaId(saga_id)]


async def leadership(cluster: Cluster) -> Leadership:
    """Waits until some node leads, and answers the proof of it."""
    await until(lambda: any(member.node.leader.leading for member in cluster.members.values()))
    node = next(iter(cluster.members.values())).node
    candidates = await node.kv.get(Get(node.keys.election, prefix_end(node.keys.election)))
    first = min(candidates.items, key=lambda item: item.create_revision)
    return Leadership(first.key, first.create_revision)


async def paused(client: Client, saga_id: str) -> str:
    """Waits until lists show a saga as paused, and answers the reason that they show."""

    async def found() -> list[str]:
        return [s.pause_reason async for s in client.list() if s.saga_id == saga_id and s.paused]

    return str((await eventually(found))[0])


def held_back(where: object, method: str) -> tuple[asyncio.Event, asyncio.Event]:
    """Lets a method of the node's return only when the second event is set; the first one says that it has its answer."""
    reached, gate = asyncio.Event(), asyncio.Event()
    original = getattr(where, method)

    async def held(*args: object, **kwargs: object) -> object:
        answer = await original(*args, **kwargs)
        reached.set()
        await gate.wait()
        return answer

    setattr(where, method, held)
    return reached, gate
