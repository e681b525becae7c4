"""What the machine could do at best, measured in the same run as the sagas: so that each figure is also a ratio."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc.aio

from sec.bench.server import STREAM, UNARY
from sec.core.records import SagaId
from sec.store.etcd import EtcdConfig, EtcdKv
from sec.store.keys import Keys
from sec.store.kv import Delete, LeaseId, Op, Put, Txn, absent, created_at, prefix_end

LIMIT_S = 1.0
"""How long each limit is measured."""
RECORDS_PER_TXN, WRITERS = 100, 4
ITEMS_PER_MESSAGE, MESSAGES_AT_ONCE = 32, 8
CALLS_AT_ONCE = 64
ENVELOPE_BYTES = 100
"""What a record or a call has around its payload, about."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of many at a time, in units a second."""

    etcd_records_per_s: float
    stream_items_per_s: float
    """Of a bidirectional stream between two processes, 32 items in a message."""
    unary_calls_per_s: float
    loop_turns_per_s: float


async def measure(etcd_endpoints: Sequence[str], echo_address: str, payload_bytes: int) -> Limits:
    """All limits, one after the other."""
    async with _raw(etcd_endpoints, echo_address) as (kv, channel):
        item = _item(payload_bytes)
        return Limits(
            await _etcd_records(kv, item),
            await _stream_items(channel, item),
            await _unary_calls(channel, item),
            await _loop_turns(),
        )


async def measure_floor(etcd_endpoints: Sequence[str], echo_address: str, payload_bytes: int, serial_calls: int) -> float:
    """How long a saga takes at the least that is alone, in seconds: its submit, its commits and its calls, one after the other, made by nobody but this process. A median."""
    took = list[float]()
    async with _raw(etcd_endpoints, echo_address) as (kv, channel):
        item, keys, lease = _item(payload_bytes), Keys("/bench"), await kv.lease_grant(60)
        submit, call = _unary(channel), _by_stream(channel, item)
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            saga_id, start = SagaId(f"alone-{time.time_ns()}"), time.monotonic()
            await submit(item)
            epoch = (await kv.txn(_bundle(_begin(keys, saga_id, item, lease)))).revision
            for number in range(serial_calls):
                await call()
                await kv.txn(_bundle(_append(keys, saga_id, epoch, number, item, ends=number == serial_calls - 1)))
            took.append(time.monotonic() - start)
        await kv.lease_revoke(lease)
    return statistics.median(took)


# The transactions of a saga, as `sec.store.sagas` makes them, in a prefix of their own.


def _bundle(txn: Txn) -> Txn:
    return Txn(then=[txn])


def _begin(keys: Keys, saga_id: SagaId, item: bytes, lease: LeaseId) -> Txn:
    puts = [
        Put(keys.saga(saga_id), item),
        Put(keys.log_batch(saga_id, 1), item[:ENVELOPE_BYTES]),
        Put(keys.active(saga_id), item[:ENVELOPE_BYTES]),
        Put(keys.owner(saga_id), b"bench", lease),
    ]
    return Txn([absent(keys.saga(saga_id)), absent(keys.definition("none"))], puts)


def _append(keys: Keys, saga_id: SagaId, epoch: int, number: int, item: bytes, *, ends: bool) -> Txn:
    log_key = keys.log_batch(saga_id, number + 2)
    then: list[Op] = [Put(log_key, item)]
    if ends:
        left = keys.commands_of(saga_id)
        then += [Delete(left, prefix_end(left)), Put(keys.ended(saga_id), item[:ENVELOPE_BYTES])]
        then += [Delete(keys.active(saga_id)), Delete(keys.owner(saga_id))]
    return Txn([created_at(keys.owner(saga_id), epoch), absent(log_key)], then)


@asynccontextmanager
async def _raw(etcd_endpoints: Sequence[str], echo_address: str) -> AsyncIterator[tuple[EtcdKv, grpc.aio.Channel]]:
    kv = EtcdKv(EtcdConfig(tuple(etcd_endpoints)))
    try:
        async with grpc.aio.insecure_channel(echo_address) as channel:
            yield kv, channel
    finally:
        await kv.aclose()


def _item(payload_bytes: int) -> bytes:
    return b"v" * (payload_bytes + ENVELOPE_BYTES)


Echo = Callable[[bytes], Awaitable[bytes]]


def _unary(channel: grpc.aio.Channel) -> Echo:
    echo: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(UNARY)
    return echo


def _stream(channel: grpc.aio.Channel) -> "grpc.aio.StreamStreamCall[bytes, bytes]":
    echo: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(STREAM)
    return echo()


async def _etcd_records(kv: EtcdKv, value: bytes) -> float:
    records, end = 0, time.monotonic() + LIMIT_S

    async def write(writer: int) -> None:
        nonlocal records
        while time.monotonic() < end:
            await kv.txn(Txn(then=[Put(b"/bench/%d/%d" % (writer, n), value) for n in range(RECORDS_PER_TXN)]))
            records += RECORDS_PER_TXN

    await asyncio.gather(*(write(n) for n in range(WRITERS)))
    return records / LIMIT_S


async def _stream_items(channel: grpc.aio.Channel, item: bytes) -> float:
    stream = _stream(channel)
    message = item * ITEMS_PER_MESSAGE
    for _ in range(MESSAGES_AT_ONCE):
        await stream.write(message)
    items, end = 0, time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        await stream.read()
        items += ITEMS_PER_MESSAGE
        await stream.write(message)
    stream.cancel()
    return items / LIMIT_S


async def _unary_calls(channel: grpc.aio.Channel, item: bytes) -> float:
    calls, end = 0, time.monotonic() + LIMIT_S
    echo = _unary(channel)

    async def call() -> None:
        nonlocal calls
        while time.monotonic() < end:
            await echo(item)
            calls += 1

    await asyncio.gather(*(call() for _ in range(CALLS_AT_ONCE)))
    return calls / LIMIT_S


async def _loop_turns() -> float:
    turns, end = 0, time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        await asyncio.sleep(0)
        turns += 1
    return turns / LIMIT_S


def _by_stream(channel: grpc.aio.Channel, item: bytes) -> Callable[[], Awaitable[object]]:
    stream = _stream(channel)

    async def call() -> None:
        await stream.write(item)
        await stream.read()

    return call
