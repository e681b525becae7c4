"""What a handler sees of a call, and the two ways in which it says that it did not work."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

from sec_model import Payload
from sec_model.codec import payload_from_proto
from sec_protos.v1 import action_server_pb2 as pb
from sec_protos.v1 import common_pb2

from sec_client.kit.cancelling import Cancellation
from sec_client.kit.progress import MAX_MESSAGE_CHARACTERS, Progress, Report
from sec_client.kit.rules import Delivery
from sec_client.kit.store import Effects, Store
from sec_client.tracing import trace_id_of
from sec_client.views import Phase

CANCELLED_CODE = "cancelled"
"""Code of the failure of an action that ended early, or never began, because nobody wants its effect any more."""


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Clock:
    """What calls tell the time by. Read on any thread. Tests in virtual time have another."""

    monotonic: Callable[[], float] = time.monotonic
    now: Callable[[], datetime] = _now


REAL_TIME = Clock()


class ActionFailed(Exception):
    """Raised by an action: it has no net effect, from this or any earlier call with its key, and never will. The saga unwinds; behind a
    point of no return it calls again, with another key.

    Raised by an undo action: the undo cannot be done, for good. The saga is stuck and an operator is called.

    `code` is a short word that a program may branch on; `data` is a JSON value, bytes or a `Payload`, kept with the error.
    Raise `Unavailable`, or anything else, when you are not sure.
    """

    def __init__(self, message: str, *, code: str = "", data: Any = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.data = data


class Unavailable(Exception):
    """It cannot be told now whether the action took effect, or it did not but may later: the cluster calls again with the same key."""


class Inputs(Mapping[str, Any]):
    """The outputs that the node reads, by the names that it gave them; each decoded when it is looked up. Raw ones: `payload`."""

    def __init__(self, payloads: Mapping[str, Payload]) -> None:
        self._payloads = payloads

    def __getitem__(self, name: str) -> Any:
        return self._payloads[name].value()

    def __iter__(self) -> Iterator[str]:
        return iter(self._payloads)

    def __len__(self) -> int:
        return len(self._payloads)

    def payload(self, name: str) -> Payload:
        """The input as it came. Raises `KeyError`."""
        return self._payloads[name]


class _CallLog(logging.LoggerAdapter[logging.Logger]):
    """Puts the saga and the node before each message, and into the record what `CallFields` does."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        extra = dict(self.extra or {})
        kwargs["extra"] = {**extra, **kwargs.get("extra", {})}
        return f"saga {extra['saga_id']} node {extra['node']} {extra['phase']}: {msg}", kwargs


class _Done:
    """What nobody has to wait for."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


_DONE = _Done()


class Call:
    """One delivery of a call to an action or, with `phase` `Phase.UNDO`, to its undo action.

    `key` is the idempotency key: the same for every delivery, and for the do and the undo of one node (but another one after a failure behind a
    point of no return). Give it to whatever outside
    system has the effect. `epoch`, `attempt` and `sec_node` say who calls; the kit has checked the epoch.

    Values are decoded when they are read: JSON to Python values, any other content type to bytes.
    """

    def __init__(
        self,
        message: pb.DoRequest | pb.UndoRequest,
        delivery: Delivery,
        *,
        store: Store,
        logger: logging.Logger,
        known_output: bytes | None = None,
        remaining_s: float | None = None,
        traceparent: str = "",
        cancellation: Cancellation | None = None,
        clock: Clock = REAL_TIME,
        progress: Progress | None = None,
    ) -> None:
        about = message.call
        undo = isinstance(message, pb.UndoRequest)
        self.saga_id = about.saga_id
        self.saga_uid = about.saga_uid
        self.node = about.node
        self.action = about.action
        self.key = about.idempotency_key
        self.epoch = about.epoch
        self.attempt = about.attempt
        self.sec_node = about.sec_node
        self.phase = Phase.UNDO if undo else Phase.DO
        self.traceparent = traceparent
        self.params_payload = payload_from_proto(message.params)
        self.inputs = Inputs({name: payload_from_proto(value) for name, value in message.inputs.items()})
        self.output_payload: Payload | None = None
        if known_output is not None:
            self.output_payload = payload_from_proto(common_pb2.Payload.FromString(known_output))
        elif isinstance(message, pb.UndoRequest) and message.HasField("output"):
            self.output_payload = payload_from_proto(message.output)
        self.fields: dict[str, str | int] = {
            "saga_id": self.saga_id,
            "node": self.node,
            "action": self.action,
            "phase": str(self.phase),
            "attempt": self.attempt,
        }
        """What log lines and spans say of the call."""
        if traceparent and (trace_id := trace_id_of(traceparent)):
            self.fields["trace_id"] = trace_id
        self._logger = logger
        self._clock = clock
        self._end = None if remaining_s is None else clock.monotonic() + remaining_s
        self._cancellation = cancellation or Cancellation()
        self._progress = progress or Progress()
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._delivery = delivery
        self._opening: asyncio.Lock | None = None
        self.effects: Effects | None = None
        """The transaction of `db`, once the handler has opened it."""

    @property
    def params(self) -> Any:
        """The params of the (sub)saga; None when it has none."""
        return self.params_payload.value()

    @property
    def output(self) -> Any:
        """In an undo: what the action answered; None when that is not known (see `output_known`)."""
        return None if self.output_payload is None else self.output_payload.value()

    @property
    def output_known(self) -> bool:
        """In an undo: the action is known to have taken effect, and `output` is its answer. False: it may have, in part or not at all."""
        return self.output_payload is not None

    @cached_property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """Logs with the saga and the node before each message, and with what `CallFields` adds."""
        return _CallLog(self._logger, self.fields)

    @cached_property
    def deadline(self) -> datetime | None:
        """When the caller stops waiting for this delivery; None: never. What is answered later is stored, and answered to its next call."""
        if self._end is None:
            return None
        return self._clock.now() + timedelta(seconds=min(self._end - self._clock.monotonic(), 1e9))

    def remaining_s(self) -> float | None:
        """Seconds until the deadline, by the monotonic clock, not below 0; None: there is no deadline."""
        return None if self._end is None else max(0.0, self._end - self._clock.monotonic())

    @property
    def cancelled(self) -> bool:
        """Nobody wants the effect any more: the saga unwinds, and what this action does will be undone at once. Never taken back; never true in an undo.

        An action that takes long may look at it and end early, by `raise_if_cancelled` where there is no effect. It may also go on: what it answers
        counts as ever. That the caller went away, or its time is up (`deadline`), is no reason: the same call comes again, and waits for this one.
        """
        return self._cancellation.is_set

    async def wait_cancelled(self) -> None:
        """Returns once the call is `cancelled`. For async handlers; the kit itself interrupts no handler."""
        await self._cancellation.wait()

    def raise_if_cancelled(self) -> None:
        """Raises `ActionFailed`, with the code "cancelled", when the call is `cancelled`.

        Call it only where there is no effect, from this or any earlier call with this key, or where all of it is in `db`, which is rolled back. Take back
        what there is before that, or raise `Unavailable` when `cancelled`: then the undo action is called.
        """
        if self.cancelled:
            raise ActionFailed(
                f'The saga does not want node "{self.node}" any more: the action ended early, without an effect.',
                code=CANCELLED_CODE,
            )

    def report(self, fraction: float | None = None, message: str = "") -> Awaitable[None]:
        """Says how far the action is: how much is done, from 0 to 1, and a line for people. Both may be missing: then it says that it is at work, which is what the
        heartbeat timeout of a node asks for.

        Never blocks and never fails, on a thread and on the event loop; what it answers may be awaited. At most one report in half a second is sent, the last one. It is
        shown with the saga, and kept nowhere. A server that is called without batches (`interceptors=…`) has no way to report.
        """
        if fraction is not None:
            fraction = None if math.isnan(fraction) else min(1.0, max(0.0, fraction))
        report = Report(fraction, message[:MAX_MESSAGE_CHARACTERS].encode(errors="replace").decode())
        with suppress(RuntimeError):  # the server has ended, and its loop with it
            self._loop.call_soon_threadsafe(self._progress.report, report)
        return _DONE

    @property
    def db(self) -> Any:
        """The store's database, inside a transaction that is committed together with the mark that the call is finished when the handler returns, and
        rolled back when it raises: a `sqlite3.Connection` of `SqliteStore`, a connection of the driver's of `DbApiStore`, a `Session` or `AsyncSession` of
        `SqlAlchemyStore`.

        So an effect in this database happens exactly once: there is no instant at which it is there and its mark is not. An effect anywhere else (another
        database, an HTTP call) can happen, and the process die before the mark is durable; then the handler is called again with the same
        key, and must itself see to it that the effect is had once.

        Use it late and briefly: of `SqliteStore` every other call to this server waits from first use until the handler ends, and other stores have few
        connections. In an async handler open it by `await call.open_db()`. Raises `StoreError`; `RuntimeError` in an async handler that has not opened it.
        """
        if self.effects is None:
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                return asyncio.run_coroutine_threadsafe(self.open_db(), self._loop).result()
            raise RuntimeError("In an async action open the database first: db = await call.open_db().")
        return self.effects.db

    async def open_db(self) -> Any:
        """`db` for async handlers: waits for the transaction without blocking the event loop."""
        if self._opening is None:  # most calls are for other things
            self._opening = asyncio.Lock()
        async with self._opening:
            if self.effects is None:
                self.effects = await self._store.begin_effects(self._delivery)
        return self.effects.db
