"""Sagas in the store: submit, start, append, claim, release, read, remove.

Every write is one transaction on keys of one saga, fenced by the owner key's create revision and by the absence of the log key that it
creates. A write whose answer was lost is simply sent again: the second answer tells, by what stands in the log, whether the first one
landed. Nothing is guessed. What an owner must write in the end is sent again too when the store refuses it, out of space most likely.

All methods may raise `KvUnavailable` (not done), `Indeterminate` (perhaps done, after `give_up` said to stop asking) and `KvRefused`.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial

from google.protobuf.message import DecodeError
from msgspec import Struct
from sec_model import Deadline, Payload
from sec_model.codec import deadline_from_proto, deadline_to_proto, payload_from_proto
from sec_protos.storage.v1 import storage_pb2
from sec_protos.v1 import coordinator_pb2
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_exponential

from sec.codec import batch_to_bytes, entries_from_bytes
from sec.core.errors import CorruptLog
from sec.core.records import Epoch, LogEntry, Record, SagaId, SecNodeName
from sec.store.commit import GroupCommit
from sec.store.errors import Fenced, SagaExists, SagaNotFound, WrongState
from sec.store.keys import Keys, last_segment
from sec.store.kv import (
    Compare,
    Delete,
    Get,
    GetResult,
    Indeterminate,
    KeyValue,
    Kv,
    KvError,
    KvRefused,
    KvUnavailable,
    LeaseId,
    Op,
    Put,
    Revision,
    Txn,
    TxnResult,
    absent,
    created_at,
    exists,
    prefix_end,
)
from sec.store.reads import read_together

Summary = coordinator_pb2.SagaSummary
GiveUp = Callable[[], bool]
"""Says that it is no use to try any longer: the session is gone, the caller's deadline has passed."""

Wanted = Callable[[], bool]
"""Says that a write is to be sent again although the store has refused it."""

Written = Callable[[Exception | None], None]
"""Is told, once, that records are durable (None), or why they are not and never will be: `Fenced`, or `KvError` when they were given up."""

RETRY_MAX_PAUSE_S = 1.0
TELL_AFTER = 3
"""A write that had to be sent so often is worth a line in the log."""

_log = logging.getLogger(__name__)


def _never() -> bool:
    return False


def _always() -> bool:
    return True


class SagaHead(Struct, frozen=True, gc=False):
    """What a saga was submitted with."""

    saga_id: SagaId
    uid: str
    name: str
    definition_hash: str
    params: Payload
    labels: dict[str, str]
    created_us: int
    deadline: Deadline | None = None
    traceparent: str = ""
    """The trace context of the submit, as W3C has it; empty when it had none."""


class Ownership(Struct, frozen=True, gc=False):
    """Who takes a saga: an SEC node, by its session's lease."""

    sec_node: SecNodeName
    lease: LeaseId


class Submitted(Struct, frozen=True, gc=False):
    """`created` False: the same saga was there before. `epoch` is set when it was created with an owner."""

    created: bool
    epoch: Epoch | None


class StoredSaga(Struct, frozen=True, gc=False):
    """A saga as the store has it at one revision. `owner` is empty when nobody owns it. `problem` is set when it cannot be read;
    the entries are then those before the damage."""

    head: SagaHead
    entries: tuple[LogEntry, ...]
    owner: SecNodeName
    revision: Revision
    problem: str = ""
    log_bytes: int = 0
    """How large its log is in the store."""
    born: Revision | None = None
    """The revision at which it was submitted: another saga under the same id, after this one was removed, has another. None: that is missing."""


class Claimed(Struct, frozen=True, gc=False):
    """A saga that is ours from `epoch` on."""

    epoch: Epoch
    saga: StoredSaga
    commands: list[tuple[str, bytes]]
    """Those that wait for its owner, in the order in which they were given: their ids and messages."""


class SagaStore:
    """Sagas under the keys of one cluster, written by one SEC node."""

    def __init__(self, kv: Kv, keys: Keys, commits: GroupCommit, sec_node: SecNodeName, clock_us: Callable[[], int]) -> None:
        self._kv = kv
        self._keys = keys
        self._commits = commits
        self._sec_node = sec_node
        self._clock_us = clock_us
        self._loop = asyncio.get_running_loop()
        self._looking: set[asyncio.Task[None]] = set()
        """Into appends that were not written at the first try."""

    async def submit(
        self,
        head: SagaHead,
        records: tuple[Record, ...],
        summary: Summary,
        owner: Ownership | None,
        *,
        started: bool,
        give_up: GiveUp,
    ) -> Submitted:
        """Creates a saga with its first records; with an `owner` it is owned from the same transaction on. Idempotent.

        Raises `SagaExists` when the id stands for another saga. The definition must have been stored.
        """
        keys, saga_id = self._keys, head.saga_id
        then: list[Op] = [
            Put(keys.saga(saga_id), _head_to_bytes(head)),
            Put(keys.log_batch(saga_id, 1), batch_to_bytes(Epoch(0), self._sec_node, self._clock_us(), records)),
            Put(keys.active(saga_id) if started else keys.created(saga_id), _index_entry(summary)),
        ]
        if owner is not None:
            then.append(Put(keys.owner(saga_id), owner.sec_node.encode(), owner.lease))
        txn = Txn([absent(keys.saga(saga_id)), exists(keys.definition(head.definition_hash))], then)
        result = await self._commit(saga_id, txn, give_up)
        if result.succeeded:
            return Submitted(True, Epoch(result.revision) if owner else None)
        # Asked only now: every submit would carry the question.
        result = await self._commit(saga_id, Txn(then=[Get(keys.saga(saga_id))]), give_up)
        item = _only(result.results[0])
        if item is None:
            raise WrongState(
                f'Saga "{saga_id}" was not stored: its definition {head.definition_hash} is not in the store. Submit it again.'
            )
        present = _head_from_bytes(saga_id, item.value)
        if present.uid == head.uid:  # an earlier try of ours landed
            return Submitted(True, Epoch(item.create_revision) if owner else None)
        if _content(present) != _content(head):
            raise SagaExists(
                f'Saga "{saga_id}" exists with another definition, other params, other labels or another deadline. Choose another id.'
            )
        return Submitted(False, None)

    async def start(
        self,
        stored: StoredSaga,
        first_sequence: int,
        records: tuple[Record, ...],
        summary: Summary,
        owner: Ownership | None,
        give_up: GiveUp,
        commands: Sequence[str] = (),
    ) -> Submitted:
        """Starts a saga that was created and not started, as `stored`; with an `owner` it is owned from the same transaction on. `commands`
        as in `append`.

        Raises `WrongState` when somebody else has started it, or removed it, meanwhile.
        """
        keys, saga_id = self._keys, stored.head.saga_id
        log_key = keys.log_batch(saga_id, first_sequence)
        batch = batch_to_bytes(Epoch(0), self._sec_node, self._clock_us(), records)
        then: list[Op] = [
            Put(log_key, batch),
            Delete(keys.created(saga_id)),
            Put(keys.active(saga_id), _index_entry(summary)),
            *(Delete(keys.command(saga_id, command_id)) for command_id in commands),
        ]
        if owner is not None:
            then.append(Put(keys.owner(saga_id), owner.sec_node.encode(), owner.lease))
        same = created_at(keys.saga(saga_id), stored.born or 0)
        txn = Txn([exists(keys.created(saga_id)), same, absent(log_key)], then, [Get(log_key)])
        result = await self._commit(saga_id, txn, give_up)
        if result.succeeded:
            return Submitted(True, Epoch(result.revision) if owner else None)
        item = _only(result.results[0])
        if item is None or item.value != batch:
            raise WrongState(f'Saga "{saga_id}" has been started already, or was deleted meanwhile.')
        return Submitted(True, Epoch(item.create_revision) if owner else None)

    def append(
        self,
        saga_id: SagaId,
        epoch: Epoch,
        first_sequence: int,
        records: tuple[Record, ...],
        written: Written,
        *,
        summary: Summary | None,
        ended: bool,
        give_up: GiveUp,
        commands: Sequence[str] = (),
        wanted: Wanted = _never,
    ) -> None:
        """Appends records to the log of a saga that we own, and tells when they are `written`, later. `summary` is what lists show from now on, when that changes; `commands` are the
        commands that these records take up, which are removed in the same transaction.

        With `ended` the saga goes from the active ones to those that ended, and its owner key goes too. Records that the store refuses wait
        as long as they are `wanted`.
        """
        keys = self._keys
        log_key = keys.log_batch(saga_id, first_sequence)
        batch = batch_to_bytes(epoch, self._sec_node, self._clock_us(), records)
        then: list[Op] = [Put(log_key, batch)]
        if ended:
            assert summary is not None, "an ended saga needs its last summary"
            left = keys.commands_of(saga_id)
            then.append(Delete(left, prefix_end(left)))
            then += [
                Put(keys.ended(saga_id), _index_entry(summary)),
                Delete(keys.active(saga_id)),
                Delete(keys.owner(saga_id)),
            ]
        elif summary is not None:
            then.append(Put(keys.active(saga_id), _index_entry(summary)))
        if not ended:
            then += [Delete(keys.command(saga_id, command_id)) for command_id in commands]
        txn = Txn([self._owned(saga_id, epoch), absent(log_key)], then)
        self._commits.send(saga_id, txn, partial(self._appended, saga_id, epoch, txn, give_up, wanted, written))

    def _appended(
        self,
        saga_id: SagaId,
        epoch: Epoch,
        txn: Txn,
        give_up: GiveUp,
        wanted: Wanted,
        written: Written,
        result: TxnResult | BaseException,
    ) -> None:
        """By a callback, and a task only where there is more to it: every step of every saga comes by here."""
        if isinstance(result, TxnResult):
            if result.succeeded:
                written(None)
                return
        elif not isinstance(result, Exception):
            return  # the event loop stops
        first = result

        async def look_into() -> None:
            try:
                await self._look_into_append(saga_id, epoch, txn, give_up, wanted, first)
            except (KvError, Fenced) as error:
                written(error)
            else:
                written(None)

        task = self._loop.create_task(look_into(), name=f"append to saga {saga_id}")
        self._looking.add(task)
        task.add_done_callback(self._looking.discard)

    async def _look_into_append(
        self, saga_id: SagaId, epoch: Epoch, txn: Txn, give_up: GiveUp, wanted: Wanted, first: TxnResult | Exception
    ) -> None:
        """Returns when the records are durable after all. Raises `Fenced`, or `KvError` when they were given up."""
        if (await self._commit(saga_id, txn, give_up, wanted, first)).succeeded:
            return
        put = txn.then[0]
        assert isinstance(put, Put)
        log_key, batch = put.key, put.value
        # Asked only now: every append would carry the question. What is under a log key does not change as long as there is the saga.
        result = await self._commit(saga_id, Txn(then=[Get(log_key), Get(self._keys.owner(saga_id))]), give_up, wanted)
        present = _only(result.results[0])
        if present is not None and present.value == batch:  # an earlier try of ours landed
            return
        raise Fenced(
            f'Saga "{saga_id}" is no longer owned by SEC node "{self._sec_node}" in epoch {epoch}: {_owner_text(result.results[1])}.'
        )

    async def update_summary(self, saga_id: SagaId, epoch: Epoch, summary: Summary, give_up: GiveUp) -> None:
        """Writes what lists show of an active saga that we own. Raises `Fenced`."""
        txn = Txn([self._owned(saga_id, epoch)], [Put(self._keys.active(saga_id), _index_entry(summary))])
        if not (await self._commit(saga_id, txn, give_up)).succeeded:
            raise Fenced(f'Saga "{saga_id}" is no longer owned by SEC node "{self._sec_node}" in epoch {epoch}.')

    async def command(self, saga_id: SagaId, command_id: str, message: bytes, give_up: GiveUp) -> bool:
        """Keeps a command for the owner of a saga. False when the saga has ended. Idempotent while it waits."""
        keep = [Put(self._keys.command(saga_id, command_id), message)]
        # A saga goes from created to active to ended, so that one that is neither when it is asked in this order has ended.
        for place in (self._keys.created(saga_id), self._keys.active(saga_id)):
            if (await self._commit(saga_id, Txn([exists(place)], keep), give_up)).succeeded:
                return True
        return False

    async def waiting_commands(self, saga_id: SagaId) -> int:
        """How many commands wait for the owner of a saga."""
        prefix = self._keys.commands_of(saga_id)
        return (await self._kv.get(Get(prefix, prefix_end(prefix), limit=1, keys_only=True))).count

    async def commands(self, saga_id: SagaId) -> list[tuple[str, bytes]]:
        """The commands that wait for the owner of a saga, in the order in which they were given: their ids and messages."""
        prefix = self._keys.commands_of(saga_id)
        return self._commands(saga_id, await self._kv.get(Get(prefix, prefix_end(prefix))))

    def _commands(self, saga_id: SagaId, waiting: object) -> list[tuple[str, bytes]]:
        assert isinstance(waiting, GetResult)
        items = sorted(waiting.items, key=lambda item: item.create_revision)
        return [(item.key[len(self._keys.commands_of(saga_id)) :].decode(), item.value) for item in items]

    async def drop_command(self, saga_id: SagaId, command_id: str, give_up: GiveUp) -> None:
        """Removes a command that the log shows as taken up."""
        await self._commit(saga_id, Txn(then=[Delete(self._keys.command(saga_id, command_id))]), give_up)

    async def claim(self, saga_ids: Sequence[SagaId], owner: Ownership, give_up: GiveUp) -> dict[SagaId, Claimed]:
        """Takes active sagas that nobody owns. Those that were taken first by somebody else, or have ended, are not in the answer.

        Raises what the store says when it refuses all of them. When it refuses some, the others are ours.
        """
        claims = (self._claim(saga_id, owner, give_up) for saga_id in saga_ids)
        answers = await asyncio.gather(*claims, return_exceptions=True)
        claimed: dict[SagaId, Claimed] = {}
        refusals: list[KvError] = []
        for saga_id, answer in zip(saga_ids, answers, strict=True):
            match answer:
                case Claimed():
                    claimed[saga_id] = answer
                case KvError():
                    refusals.append(answer)
                case BaseException():
                    raise answer
        if refusals and not claimed:
            raise refusals[0]
        if refusals:
            _log.warning("%d sagas could not be claimed; the sweep will see to them: %s", len(refusals), refusals[0])
        return claimed

    async def _claim(self, saga_id: SagaId, owner: Ownership, give_up: GiveUp) -> Claimed | None:
        keys = self._keys
        put = Put(keys.owner(saga_id), owner.sec_node.encode(), owner.lease)
        waiting = keys.commands_of(saga_id)
        reads = [*self._reads(saga_id), Get(waiting, prefix_end(waiting))]
        txn = Txn([absent(keys.owner(saga_id)), exists(keys.active(saga_id))], [*reads, put], [Get(keys.owner(saga_id))])
        result = await self._commit(saga_id, txn, give_up)
        epoch = Epoch(result.revision)
        if not result.succeeded:
            item = _only(result.results[0])
            if item is None or item.lease != owner.lease:
                return None
            epoch = Epoch(item.create_revision)  # an earlier try of ours landed
            result = await self._commit(saga_id, Txn(then=reads), give_up)
        saga = self._stored(saga_id, result.results, result.revision)
        return Claimed(epoch, saga, self._commands(saga_id, result.results[3]))

    async def release(self, sagas: Sequence[tuple[SagaId, Epoch]], give_up: GiveUp) -> None:
        """Gives up sagas, so that others can claim them at once. Those that we no longer own are left alone. What the store refuses waits."""
        await asyncio.gather(
            *(
                self._commit(saga_id, Txn([self._owned(saga_id, epoch)], [Delete(self._keys.owner(saga_id))]), give_up, _always)
                for saga_id, epoch in sagas
            )
        )

    async def delete(self, saga_id: SagaId, give_up: GiveUp) -> None:
        """Removes a saga that has ended or was never started, all of it at once. Nothing of it is left; its id is free again.

        Raises `SagaNotFound`, and `WrongState` when it is active, or was started meanwhile.
        """
        keys = self._keys
        # A saga goes from created to active to ended, so that one that is neither of these when it is asked in this order was active.
        place = _only(await self._kv.get(Get(keys.created(saga_id)))) or _only(await self._kv.get(Get(keys.ended(saga_id))))
        if place is None:
            if _only(await self._kv.get(Get(keys.saga(saga_id), keys_only=True))) is None:
                raise SagaNotFound(f'There is no saga "{saga_id}". See "secctl saga list".')
            raise WrongState(
                f'Saga "{saga_id}" has not ended and cannot be deleted. To end it, let it go on, or abort it: "secctl saga abort {saga_id}".'
            )
        result = await self._commit(saga_id, self._removal(saga_id, place, ()), give_up)
        if (
            not result.succeeded and _only(result.results[0]) is not None
        ):  # otherwise it is gone, by an earlier try of ours most likely
            raise WrongState(f'Saga "{saga_id}" was started just now and was not deleted.')

    async def remove_ended(self, ended: KeyValue, fence: Compare) -> bool:
        """Removes the saga that has ended by this entry of the index, all of it at once, for as long as `fence` holds. False when the saga or the
        fence is gone. Tried once. Raises `KvError`."""
        saga_id = SagaId(last_segment(ended.key))
        return (await self._commits.commit(saga_id, self._removal(saga_id, ended, (fence,)))).succeeded

    def _removal(self, saga_id: SagaId, place: KeyValue, fences: Sequence[Compare]) -> Txn:
        """Deletes every key of a saga, if it is still the one that stands at `place` in an index of sagas that are not active."""
        keys = self._keys
        log, waiting = keys.log(saga_id), keys.commands_of(saga_id)
        deletes = [
            Delete(place.key),
            Delete(keys.saga(saga_id)),
            Delete(log, prefix_end(log)),
            Delete(waiting, prefix_end(waiting)),
        ]
        return Txn([created_at(place.key, place.create_revision), *fences], deletes, [Get(keys.saga(saga_id))])

    async def owns(self, saga_id: SagaId, epoch: Epoch) -> bool:
        """Whether the owner key is still the one of this epoch."""
        item = _only(await self._kv.get(Get(self._keys.owner(saga_id))))
        return item is not None and Epoch(item.create_revision) == epoch

    async def load(self, saga_id: SagaId) -> StoredSaga:
        """A saga with its log, at one revision, linearizably. Raises `SagaNotFound`."""
        results = await read_together(self._kv, self._reads(saga_id))
        if not any(result.items for result in results):
            raise SagaNotFound(f'There is no saga "{saga_id}". See "secctl saga list".')
        return self._stored(saga_id, results, results[0].revision)

    def _reads(self, saga_id: SagaId) -> list[Get]:
        log = self._keys.log(saga_id)
        return [Get(self._keys.saga(saga_id)), Get(log, prefix_end(log)), Get(self._keys.owner(saga_id))]

    def _stored(self, saga_id: SagaId, results: Sequence[object], revision: Revision) -> StoredSaga:
        """What the store has of a saga, be it damaged."""
        head_item, log, owner_item = _only(results[0]), results[1], _only(results[2])
        assert isinstance(log, GetResult)
        head = SagaHead(saga_id, "", "", "", Payload(), {}, 0)
        entries: list[LogEntry] = []
        problem = ""
        try:
            if head_item is None:
                raise CorruptLog("What it was submitted with is missing.")
            head = _head_from_bytes(saga_id, head_item.value)
            for item in log.items:
                entries += entries_from_bytes(item.value, int(last_segment(item.key), 16), item.create_revision)
        except CorruptLog as error:
            problem = f'Saga "{saga_id}" cannot be read. {error}'
        owner = SecNodeName(owner_item.value.decode()) if owner_item is not None else SecNodeName("")
        log_bytes = sum(len(item.value) for item in log.items)
        born = None if head_item is None else head_item.create_revision
        return StoredSaga(head, tuple(entries), owner, revision, problem, log_bytes, born)

    def _owned(self, saga_id: SagaId, epoch: Epoch) -> Compare:
        return created_at(self._keys.owner(saga_id), epoch)

    async def _commit(
        self,
        saga_id: SagaId,
        txn: Txn,
        give_up: GiveUp,
        wanted: Wanted = _never,
        first: TxnResult | Exception | None = None,
    ) -> TxnResult:
        """Sends a transaction until it has a definite answer. Every transaction here may be sent twice: see the head of the module. `first` is
        what came of a try that was made already."""

        def again(error: BaseException) -> bool:
            return isinstance(error, KvUnavailable | Indeterminate) or (isinstance(error, KvRefused) and wanted())

        try:
            if isinstance(first, Exception):
                raise first
            return first or await self._commits.commit(saga_id, txn)
        except KvError as error:
            if not again(error):
                raise
            return await self._commit_again(saga_id, txn, give_up, again, error)

    async def _commit_again(
        self, saga_id: SagaId, txn: Txn, give_up: GiveUp, again: Callable[[BaseException], bool], failed: KvError
    ) -> TxnResult:
        """The rare path, apart: the first try of every transaction does not pay for its machinery. `failed` is how that one ended."""
        first: KvError | None = failed
        told = False

        def stop(_: RetryCallState) -> bool:
            return give_up()

        def tell(attempt: RetryCallState) -> None:
            nonlocal told
            error = attempt.outcome and attempt.outcome.exception()
            if isinstance(error, KvRefused):
                if not told:
                    _log.error('The store refuses writes of saga "%s", which wait: %s', saga_id, error)
                told = True
            elif attempt.attempt_number == TELL_AFTER:
                _log.warning('Writes of saga "%s" get no answer and are sent again: %s', saga_id, error)

        async for attempt in AsyncRetrying(
            retry=retry_if_exception(again),
            wait=wait_exponential(multiplier=0.02, max=RETRY_MAX_PAUSE_S),
            stop=stop,
            before_sleep=tell,
            reraise=True,
        ):
            with attempt:
                if first is not None:
                    error, first = first, None
                    raise error
                return await self._commits.commit(saga_id, txn)
        raise AssertionError("the loop above returns or raises")


def _only(result: object) -> KeyValue | None:
    assert isinstance(result, GetResult)
    return result.items[0] if result.items else None


def _owner_text(result: object) -> str:
    item = _only(result)
    return "nobody owns it" if item is None else f'"{item.value.decode()}" owns it in epoch {item.create_revision}'


def _content(head: SagaHead) -> tuple[object, ...]:
    """What makes two submits under one id the same."""
    return head.definition_hash, head.params, head.labels, head.deadline


def _index_entry(summary: Summary) -> bytes:
    """What stands in an index. The id is in the key: `sec.store.listing` puts it back."""
    summary.ClearField("saga_id")
    return summary.SerializeToString()


def _head_to_bytes(head: SagaHead) -> bytes:
    stored = storage_pb2.StoredSaga()
    stored.uid, stored.name, stored.definition_hash = head.uid, head.name, head.definition_hash
    stored.params.content_type, stored.params.data = head.params.content_type, head.params.data
    stored.created_us, stored.traceparent = head.created_us, head.traceparent
    if head.labels:
        stored.labels.update(head.labels)
    if (deadline := deadline_to_proto(head.deadline)) is not None:
        stored.deadline.CopyFrom(deadline)
    return stored.SerializeToString(deterministic=True)


def _head_from_bytes(saga_id: SagaId, data: bytes) -> SagaHead:
    try:
        stored = storage_pb2.StoredSaga.FromString(data)
        deadline = deadline_from_proto(stored.deadline) if stored.HasField("deadline") else None
    except (DecodeError, ValueError) as error:
        raise CorruptLog(f"What a saga was submitted with cannot be read: {error}") from error
    return SagaHead(
        saga_id,
        stored.uid,
        stored.name,
        stored.definition_hash,
        payload_from_proto(stored.params),
        dict(stored.labels),
        stored.created_us,
        deadline,
        stored.traceparent,
    )
