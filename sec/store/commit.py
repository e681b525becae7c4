"""Group commit: many small transactions, one for each saga, travel nested in one.

While transactions are in flight the next one fills; nothing waits for a timer, so that a saga alone in the cluster pays no delay. Each small
transaction succeeds or fails by its own compares: one fenced saga does not fail its neighbours.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from functools import partial

from msgspec import Struct

from sec.store.kv import MAX_TXN_BYTES, MAX_TXN_OPS, Delete, Get, Kv, KvError, KvRefused, LeaseNotFound, Op, Put, Txn, TxnResult

MAX_OPS_PER_SAGA = 48
"""The most operations or compares that one small transaction has. Most have less than ten."""
MAX_BYTES = MAX_TXN_BYTES - 64 * 1024
"""What is left after framing."""
IN_FLIGHT = 4
"""Transactions under way at once: enough to keep etcd's disk busy; more only make each of them smaller."""


_log = logging.getLogger(__name__)


class _Waiting(Struct):
    saga_id: str
    txn: Txn
    size: int
    ops: int
    since: float
    take: Callable[[TxnResult | BaseException], None]


class GroupCommit:
    """Bundles transactions. Use one for each connection to the store; `close` it at the end."""

    def __init__(self, kv: Kv, *, timeout_s: float) -> None:
        self._kv = kv
        self._loop = asyncio.get_running_loop()
        self._timeout_s = timeout_s
        self._waiting: deque[_Waiting] = deque()
        self._in_flight: dict[asyncio.Task[None], float] = {}
        self._last_took_s, self._last_ended = 0.0, 0.0
        self._fill_scheduled = False
        self.sent = 0
        """Transactions of sagas that were sent, since the start."""
        self.transactions = 0
        """Those that carried them."""
        self.waiting_bytes = 0
        """About how large the transactions are that wait for a place."""

    @property
    def depth(self) -> int:
        """Transactions that wait for a place."""
        return len(self._waiting)

    @property
    def waiting_since(self) -> float | None:
        """Since when the first of them has waited, by the event loop's clock; None when there is none."""
        return self._waiting[0].since if self._waiting else None

    def slowest_s(self, now: float, within_s: float) -> float:
        """How long the store takes at the moment: the age of the oldest transaction in flight, or what the last one took, if that ended less than
        `within_s` ago. `now` is by the event loop's clock."""
        ages = [now - began for began in list(self._in_flight.values())]  # a copy: metrics are read on another thread
        return max([*ages, self._last_took_s if now - self._last_ended < within_s else 0.0])

    def commit(self, saga_id: str, txn: Txn) -> "asyncio.Future[TxnResult]":
        """Carries out a transaction on keys of one saga. The `revision` of its result is that of the whole bundle.

        The future raises what `Kv.txn` raises. When it is cancelled the transaction may still be carried out.
        """
        answer: asyncio.Future[TxnResult] = self._loop.create_future()
        self.send(saga_id, txn, partial(_settle, answer))
        return answer

    def send(self, saga_id: str, txn: Txn, take: Callable[[TxnResult | BaseException], None]) -> None:
        """The same for who does not wait: `take` gets the result later, or what the future would have raised."""
        ops = max(len(txn.compares), len(txn.then), len(txn.otherwise))
        assert ops <= MAX_OPS_PER_SAGA
        size = _size(txn)
        self._waiting.append(_Waiting(saga_id, txn, size, ops, self._loop.time(), take))
        self.waiting_bytes += size
        self._schedule()

    async def close(self) -> None:
        """Waits for what is in flight. Call it when nobody commits any more."""
        while self._in_flight:
            await asyncio.wait(self._in_flight)

    def _schedule(self) -> None:
        """Lets all that happens in this turn of the event loop share a transaction."""
        if not self._fill_scheduled and self._waiting and len(self._in_flight) < IN_FLIGHT:
            self._fill_scheduled = True
            self._loop.call_soon(self._fill)

    def _fill(self) -> None:
        self._fill_scheduled = False
        bundle: dict[str, _Waiting] = {}
        put_back: list[_Waiting] = []
        size, ops = 0, 0
        while self._waiting:
            waiting = self._waiting.popleft()
            ops = max(ops, waiting.ops)
            if waiting.saga_id in bundle:  # etcd refuses a transaction that writes a key twice
                put_back.append(waiting)
            elif bundle and (
                size + waiting.size > MAX_BYTES or len(bundle) + 1 + ops > MAX_TXN_OPS
            ):  # the levels of nesting add up
                put_back.append(waiting)
                break
            else:
                bundle[waiting.saga_id] = waiting
                size += waiting.size
        self._waiting.extendleft(reversed(put_back))
        self.waiting_bytes -= size
        if bundle:
            task = self._loop.create_task(self._run(list(bundle.values())))
            self._in_flight[task] = self._loop.time()
            task.add_done_callback(self._landed)
        self._schedule()

    def _landed(self, task: "asyncio.Task[None]") -> None:
        self._last_ended = self._loop.time()
        self._last_took_s = self._last_ended - self._in_flight.pop(task)
        self._schedule()

    async def _run(self, bundle: list[_Waiting]) -> None:
        self.sent += len(bundle)
        self.transactions += 1
        try:
            result = await self._kv.txn(Txn(then=[w.txn for w in bundle]), timeout_s=self._timeout_s)
        except (KvRefused, LeaseNotFound) as error:
            if len(bundle) == 1:
                _fail(bundle, error)
            else:  # one of them is not acceptable, and nothing was written: find out which
                for waiting in bundle:
                    await self._run([waiting])
        except KvError as error:
            _fail(bundle, error)
        except BaseException as error:
            _fail(bundle, error)
            raise
        else:
            for waiting, answer in zip(bundle, result.results, strict=True):
                assert isinstance(answer, TxnResult)
                _tell(waiting, answer)


def _fail(bundle: list[_Waiting], error: BaseException) -> None:
    for waiting in bundle:
        _tell(waiting, error)


def _tell(waiting: _Waiting, result: TxnResult | BaseException) -> None:
    try:
        waiting.take(result)
    except Exception:
        _log.exception(
            "A fault of ours after a write of saga %s, which the other writes beside it must not suffer from.", waiting.saga_id
        )


def _settle(answer: "asyncio.Future[TxnResult]", result: TxnResult | BaseException) -> None:
    if answer.done():
        return  # nobody waits any more
    if isinstance(result, TxnResult):
        answer.set_result(result)
    elif isinstance(result, Exception):
        answer.set_exception(result)
    else:
        answer.cancel()


def _size(txn: Txn) -> int:
    """About how many bytes a transaction is on the wire."""
    size = 16
    for compare in txn.compares:
        size += len(compare.key) + 24
    for op in txn.then:
        size += len(op.key) + len(op.value) + 24 if type(op) is Put else _op_size(op)
    for op in txn.otherwise:
        size += _op_size(op)
    return size


def _op_size(op: Op) -> int:
    match op:
        case Put(key, value):
            return len(key) + len(value) + 24
        case Get(key) | Delete(key):
            return len(key) + 24
        case Txn():
            return _size(op)
