"""What the machine could do at best, measured in the same run as the sagas: so that each figure is also a ratio."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc.aio

from sec.bench.server import STREAM, UNARY
from sec.bench.shapes import Alone
from sec.store.etcd import EtcdConfig, EtcdKv
from sec.store.kv import Get, Put, Txn, absent, created_at

LIMIT_S = 1.0
"""How long each limit is measured."""
RECORDS_PER_TXN, WRITERS = 100, 4
ITEMS_PER_MESSAGE, MESSAGES_AT_ONCE = 32, 8
CALLS_AT_ONCE = 64
_OWNER = b"/bench/owner"
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


async def measure_alone(etcd_endpoints: Sequence[str], echo_address: str, payload_bytes: int) -> Alone:
    """Commits and calls in turns, as in a saga: each process has rested meanwhile, which makes it slower than one that is asked all the time."""
    item, took = _item(payload_bytes), (list[float](), list[float](), list[float]())
    async with _raw(etcd_endpoints, echo_address) as (kv, channel):
        await kv.txn(Txn(then=[Put(_OWNER, b"bench")]))
        owned = created_at(_OWNER, (await kv.get(Get(_OWNER))).items[0].create_revision)
        number = time.time_ns()
        submit, call = _unary(channel), _by_stream(channel, item)

        async def commit() -> None:
            nonlocal number
            number += 1
            key = b"/bench/alone/%d" % number
            await kv.txn(Txn(then=[Txn([owned, absent(key)], [Put(key, item)])]))

        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            for times, do in zip(took, (lambda: submit(item), commit, call), strict=True):
                start = time.monotonic()
                await do()
                times.append(time.monotonic() - start)
    return Alone(*map(statistics.median, took))


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
