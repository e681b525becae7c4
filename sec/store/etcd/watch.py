"""Many watches on one gRPC stream, which moves to another endpoint when its own fails.

A watch knows the next revision it has to deliver. Whenever a stream begins, every watch is created on it from there, under an id
that was never used before, so that what is still coming for the old ids is not taken for new.

etcd sends the events of a revision in one message unless fragments are asked for, and cuts what a late watch has to catch up with
between revisions only. So a message of events is a batch of the port as it stands. Its header's revision is the store's and not the
batch's: a watch that catches up has not delivered everything up to it. Source: etcd, server/storage/mvcc/watchable_store.go.
"""

import asyncio
from collections import deque
from itertools import count
from typing import Any

import grpc
import grpc.aio
from aetcd import rpc

from sec.store.etcd import codec
from sec.store.etcd.channel import Member, Pool
from sec.store.etcd.errors import Kind, Verdict, judge, judge_cancelled_watch
from sec.store.kv import Compacted, KvError, KvRefused, KvUnavailable, Revision, WatchBatch
from sec.store.watch_queue import WatchQueue

MAX_WAITING_EVENTS = 50_000
MAX_WAITING_BYTES = 64 * 1024 * 1024
"""A watch whose consumer leaves so many events waiting, or so many bytes in them, is taken off the stream, and put back when they are gone: the store keeps
them for us."""

PAUSE_S = 0.1
"""Between two streams when the first one ended without an answer."""

AUTHENTICATION_TIMEOUT_S = 5.0

_UNKNOWN_ID = -1
"""What some versions of etcd give as the id of a watch that they refuse to create."""


class _Watch:
    def __init__(self, key: bytes, range_end: bytes | None, start: Revision | None, previous: bool) -> None:
        self.key = key
        self.range_end = range_end
        self.previous = previous
        self.next: Revision | None = start
        self.announced = False
        self.paused = False
        self.token_renewed = False
        self.id: int | None = None
        self.queue: WatchQueue

    @property
    def what(self) -> str:
        return (
            f"watch the key {self.key!r}" if self.range_end is None else f"watch the keys from {self.key!r} to {self.range_end!r}"
        )


class _StreamEnded(Exception):
    """The stream is of no more use; another one takes over."""


class WatchStream:
    """The watches of one client."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._ids = count(1)
        self._watches: dict[_Watch, None] = {}  # a set, in the order in which they began
        self._by_id: dict[int, _Watch] = {}
        self._creating: deque[tuple[int, _Watch]] = deque()
        self._outbox: asyncio.Queue[Any] | None = None
        self._call: Any = None
        self._member: Member | None = None
        self._moving = False
        self._answered = False
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        pool.on_suspicion(self._suspected)

    def watch(self, key: bytes, range_end: bytes | None, start: Revision | None, previous: bool) -> WatchQueue:
        watch = _Watch(key, range_end, start, previous)
        watch.queue = WatchQueue(lambda: self._begin(watch), lambda: self._end(watch), lambda: self._taken(watch))
        return watch.queue

    async def aclose(self) -> None:
        self._closed = True
        for watch in list(self._watches):
            watch.queue.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    def _begin(self, watch: _Watch) -> None:
        if self._closed:
            watch.queue.fail(KvUnavailable(f"Could not {watch.what}: this client of etcd is closed."))
            return
        self._watches[watch] = None
        self._wanted.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="etcd-watch")
        self._create(watch)

    def _end(self, watch: _Watch) -> None:
        self._watches.pop(watch, None)
        self._take_off(watch)
        if not self._watches:
            self._wanted.clear()

    def _taken(self, watch: _Watch) -> None:
        if watch.paused and watch.queue.events == 0:
            watch.paused = False
            self._create(watch)

    def _fail(self, watch: _Watch, error: Exception) -> None:
        watch.queue.fail(error)
        self._end(watch)

    def _suspected(self, member: Member) -> None:
        if self._call is not None and member is self._member and self._pool.size > 1:
            self._moving = True
            self._call.cancel()

    def _create(self, watch: _Watch) -> None:
        if self._outbox is None or watch.paused:
            return
        watch.id = next(self._ids)
        self._by_id[watch.id] = watch
        self._creating.append((watch.id, watch))
        create = rpc.WatchCreateRequest(
            key=watch.key,
            range_end=watch.range_end,
            start_revision=watch.next or 0,
            prev_kv=watch.previous,
            progress_notify=True,  # keeps `next` of a quiet watch ahead of compactions
            watch_id=watch.id,
        )
        self._outbox.put_nowait(rpc.WatchRequest(create_request=create))

    def _take_off(self, watch: _Watch) -> None:
        if watch.id is None:
            return
        self._by_id.pop(watch.id, None)
        if self._outbox is not None:
            self._outbox.put_nowait(rpc.WatchRequest(cancel_request=rpc.WatchCancelRequest(watch_id=watch.id)))
        watch.id = None

    async def _run(self) -> None:
        while True:
            await self._wanted.wait()
            member = await self._pool.connected()
            self._answered = False
            try:
                metadata = await self._pool.metadata(member, AUTHENTICATION_TIMEOUT_S)
                await self._serve(member, metadata)
            except KvRefused as error:
                for watch in list(self._watches):
                    self._fail(watch, error)
            except (KvUnavailable, _StreamEnded):
                self._pool.suspect(member)
            except grpc.aio.AioRpcError as error:
                if judge(error, "watch", member.target).kind is Kind.TOKEN:
                    self._pool.forget_token()
                self._pool.suspect(member)
            if not self._answered:
                await asyncio.sleep(PAUSE_S)

    async def _serve(self, member: Member, metadata: Any) -> None:
        # Ends in an exception, or by returning when the stream is to move.
        self._call = call = member.watch.Watch(metadata=metadata)
        self._member = member
        self._moving = False
        outbox: asyncio.Queue[Any] = asyncio.Queue()
        self._outbox = outbox
        for watch in self._watches:
            self._create(watch)
        writer = asyncio.get_running_loop().create_task(_write(call, outbox), name="etcd-watch-writer")
        try:
            while True:
                answer = await call.read()
                if answer is grpc.aio.EOF:
                    raise _StreamEnded
                self._answered = True
                self._take(answer)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._moving or (task is not None and task.cancelling()):
                raise
        finally:
            self._outbox = self._call = self._member = None
            self._by_id.clear()
            self._creating.clear()
            for watch in self._watches:
                watch.id = None
            writer.cancel()
            call.cancel()
            await asyncio.wait((writer,))

    def _take(self, answer: Any) -> None:
        if answer.created:
            self._take_created(answer)
            return
        watch = self._by_id.get(answer.watch_id)
        if watch is None:
            return  # closed by its consumer meanwhile
        if answer.canceled or answer.compact_revision:
            self._take_cancelled(watch, answer)
        elif answer.events:
            self._take_events(watch, answer)
        else:
            self._deliver(watch, WatchBatch(Revision(answer.header.revision)))

    def _take_created(self, answer: Any) -> None:
        # Creations are answered in their order: needed where the answer does not name the watch.
        if not self._creating:
            raise _StreamEnded
        watch_id, watch = self._creating.popleft()
        if answer.watch_id not in (watch_id, _UNKNOWN_ID):
            raise _StreamEnded
        if watch.id != watch_id:
            return
        if answer.canceled:
            self._take_cancelled(watch, answer)
            return
        watch.token_renewed = False
        if watch.next is None:
            watch.next = Revision(answer.header.revision + 1)
        if not watch.announced:
            watch.announced = True
            watch.queue.push(WatchBatch(Revision(watch.next - 1)))

    def _take_cancelled(self, watch: _Watch, answer: Any) -> None:
        if answer.compact_revision:
            message = f"Could not {watch.what} from revision {watch.next}: etcd has compacted up to {answer.compact_revision}."
            self._fail(watch, Compacted(message))
            return
        target = self._member.target if self._member is not None else "?"
        verdict = judge_cancelled_watch(answer.cancel_reason, watch.what, target)
        if self._pool.authenticates and not watch.token_renewed and verdict.kind in (Kind.TOKEN, Kind.FINAL):
            # Some versions say "permission denied" of a token that has expired.
            watch.token_renewed = True
            self._pool.forget_token()
            raise _StreamEnded
        if (error := _final(verdict)) is not None:
            self._fail(watch, error)
            return
        raise _StreamEnded

    def _take_events(self, watch: _Watch, answer: Any) -> None:
        events = codec.events(answer.events, watch.next or 0)
        if events:
            self._deliver(watch, WatchBatch(events[-1].item.mod_revision, events))

    def _deliver(self, watch: _Watch, batch: WatchBatch) -> None:
        if watch.next is not None and batch.revision < watch.next:
            return
        watch.next = Revision(batch.revision + 1)
        watch.queue.push(batch)
        if watch.queue.events > MAX_WAITING_EVENTS or watch.queue.bytes > MAX_WAITING_BYTES:
            watch.paused = True
            self._take_off(watch)


def _final(verdict: Verdict) -> KvError | None:
    return verdict.error or (KvRefused(verdict.message) if verdict.kind is Kind.TOKEN else None)


async def _write(call: Any, outbox: asyncio.Queue[Any]) -> None:
    try:
        while True:
            await call.write(await outbox.get())
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        return  # the reader sees the same end of the stream, and says why
