"""The action servers of a tester, and the way to them: the kit's own services over stores of their own, called without sockets. What is scripted goes wrong
on the way, and only there; what a delivery means is for the kit to say."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from sec_client import kit
from sec_client.kit import progress as kit_progress
from sec_client.kit.call import Clock
from sec_client.kit.service import ActionService
from sec_client.tracing import TRACEPARENT
from sec_model.schemas import ActionSchemas
from sec_protos.v1 import action_server_pb2 as pb

from sec.core.records import Fault as CoreFault
from sec.core.records import Phase
from sec.dispatch.calls import (
    Answer,
    Answered,
    Call,
    Heard,
    NotOffered,
    Report,
    Unanswered,
    do_answer,
    fill_request,
    status_answer,
    undo_answer,
)
from sec.node.settings import Limits
from sec.sim.loop import WORLD, SimProcess
from sec_testing.faults import AnyFault, Away, Delay, Die, Fail, Fault, LoseAnswer, LoseCall, Made, Repeat, Straggle
from sec_testing.loop import VirtualLoop

if TYPE_CHECKING:
    from sec_testing.directory import InProcessDirectory

MAX_OUTPUT_BYTES = Limits().payload_bytes
ON_THE_WAY_S = 0.002
"""That a call takes, and that its answer takes."""


@dataclass
class Serving:
    """An action server that can be called."""

    server: kit.ActionServer
    store: kit.Store
    service: ActionService
    process: SimProcess
    away_until: float = 0.0


@dataclass
class Script:
    """What goes wrong with the calls of one saga, and how many there have been."""

    faults: tuple[Fault, ...] = ()
    counts: Counter[tuple[str, str, bool]] = field(default_factory=Counter)
    struck: set[Fault] = field(default_factory=set)

    def strike(self, call: Call) -> tuple[Fault, ...]:
        """Counts a call; answers what strikes it."""
        undo = call.phase is Phase.UNDO
        for what, name in (("node", call.node), ("action", call.action)):
            self.counts[what, name, undo] += 1
        of_node, of_action = self.counts["node", call.node, undo], self.counts["action", call.action, undo]
        struck = tuple(f for f in self.faults if f.strikes(call.node, call.action, undo, of_node, of_action))
        self.struck.update(struck)
        return struck


class Servers:
    """All of them. `changed` is called whenever a call is made, begins, or has its answer."""

    def __init__(self, loop: VirtualLoop, now: Callable[[], datetime], began_s: float, changed: Callable[[], None]) -> None:
        self.calls: list[Made] = []
        self.scripts: dict[str, Script] = {}
        self._loop = loop
        self._now = now
        self._began_s = began_s
        self._changed = changed
        self._serving: dict[str, Serving] = {}
        self._directories: list[InProcessDirectory] = []
        self._in_hand: dict[str, list[pb.DoRequest]] = {}
        """Dos that a server has, by their keys."""
        self._unanswered: dict[asyncio.Future[Answer], tuple[str, str]] = {}
        self._listeners: dict[asyncio.Future[Answer], tuple[asyncio.Timeout, Callable[[Report], None]]] = {}
        """Of calls that an SEC node waits for: the heartbeat timeout, and who is told of reports."""
        """Calls that an SEC node waits for: the saga, and the node."""
        self._late: dict[asyncio.Task[None], str] = {}
        """Deliveries that nobody waits for, with their sagas."""
        self._stragglers: list[tuple[Call, Made]] = []
        self._at_handler: dict[tuple[str, bool, int, int], Fail | Die] = {}
        """What strikes the handler of a call: by key, undo, epoch and attempt."""

    async def open(self, server: kit.ActionServer, store: kit.Store) -> None:
        """Lets an action server be called. Raises `ValueError` for its name when there is one of that name, and what `ActionServer.start` raises."""
        if server.name in self._serving:
            raise ValueError(f'There are two action servers called "{server.name}" in this test.')
        clock = Clock(self._loop.time, lambda: self._now().astimezone(UTC))
        service = server.service(store, clock=clock, around=self._around)
        await store.open(server.name)
        self._serving[server.name] = Serving(server, store, service, SimProcess(server.name))
        self._offer()

    async def close(self) -> None:
        for serving in self._serving.values():
            await serving.service.finish(0.0)
            await serving.store.close()
        self._serving.clear()

    @property
    def processes(self) -> list[SimProcess]:
        return [serving.process for serving in self._serving.values()]

    def store_of(self, name: str) -> kit.Store:
        """Raises `ValueError`."""
        return self._named(name).store

    def away(self, name: str, for_s: float) -> None:
        """An action server cannot be called for so long, from now on. What it has in hand it does. Raises `ValueError`."""
        self._go_away(self._named(name), for_s)

    def _go_away(self, serving: Serving, for_s: float) -> None:
        serving.away_until = max(serving.away_until, self._loop.time() + for_s)
        self._offer()
        self.later(serving.away_until - self._loop.time(), self._offer)

    def _named(self, name: str) -> Serving:
        if name not in self._serving:
            listed = ", ".join(f'"{known}"' for known in self._serving) or "none"
            raise ValueError(f'There is no action server "{name}" in this test; there are: {listed}.')
        return self._serving[name]

    def later(self, delay_s: float, callback: Callable[[], object]) -> None:
        """Has something happen by itself, in nobody's process."""
        self._loop.call_later(delay_s, callback, context=WORLD)

    def action_names(self) -> frozenset[str]:
        """What they offer when none of them is away."""
        return frozenset(action.name for serving in self._serving.values() for action in serving.server.actions)

    def offered(self) -> frozenset[str]:
        """What they offer now."""
        return frozenset(action.name for serving in self._there() for action in serving.server.actions)

    def schemas(self) -> Mapping[str, tuple[ActionSchemas, ...]]:
        """How they describe it."""
        return {
            action.name: action.schemas for serving in self._there() for action in serving.server.actions if any(action.schemas)
        }

    def _there(self) -> list[Serving]:
        return [serving for serving in self._serving.values() if serving.away_until <= self._loop.time()]

    def add(self, directory: "InProcessDirectory") -> None:
        self._directories.append(directory)
        directory.refresh()

    def _offer(self) -> None:
        for directory in self._directories:
            self._loop.call_soon(directory.refresh, context=directory.process.context.copy())

    # calls

    def waits_for(self, saga_id: str) -> bool:
        """Some SEC node that lives waits for the answer to a call of this saga."""
        return any(saga == saga_id for saga, _ in self._unanswered.values())

    def forget(self, sec_node: str) -> None:
        """An SEC node has died: it waits for nothing any more."""
        for answer in [a for a, (_, node) in self._unanswered.items() if node == sec_node]:
            del self._unanswered[answer]

    async def call(self, sec_node: str, call: Call, heard: Heard) -> Answer:
        """An SEC node makes a call, and waits for the answer as long as that may take. `heard` gets what is reported meanwhile."""
        faults = self.scripts.setdefault(call.saga_id, Script()).strike(call)
        undo = call.phase is Phase.UNDO
        at_s = round(self._loop.time() - self._began_s, 6)
        made = Made(
            call.saga_id, call.node, call.action, undo, call.attempt, call.idempotency_key, call.epoch, sec_node, at_s, faults
        )
        serving = next((s for s in self._there() if call.action in s.server.actions.by_name), None)
        if serving is None:
            return NotOffered()
        self.calls.append(made)
        self._changed()
        answer: asyncio.Future[Answer] = self._loop.create_future()
        self._unanswered[answer] = call.saga_id, sec_node
        silence = asyncio.timeout(call.heartbeat_timeout_s or None)
        self._listeners[answer] = silence, lambda report: heard(call, report)
        self._send(serving, call, made, faults, answer)
        try:
            async with asyncio.timeout(call.timeout_s), silence:
                return await answer
        except TimeoutError:
            self._heard(made, "nothing")
            if silence.expired():
                return Unanswered(CoreFault("Neither an answer nor a report came in time.", "no_heartbeat"))
            return Unanswered(CoreFault("No answer came in time.", "deadline_exceeded"))
        finally:
            self._listeners.pop(answer, None)
            self._unanswered.pop(answer, None)
            self._changed()

    def _send(
        self, serving: Serving, call: Call, made: Made, faults: tuple[AnyFault, ...], answer: "asyncio.Future[Answer]"
    ) -> None:
        late_s, copies, heard, arrives = 0.0, [0.0], True, True
        for fault in faults:
            match fault:
                case Fail() | Die():
                    self._at_handler[call.idempotency_key, made.undo, call.epoch, call.attempt] = fault
                case LoseAnswer():
                    heard = False
                case LoseCall():
                    arrives = False
                case Delay(by_s=by_s):
                    late_s += by_s
                case Repeat(after_s=after_s):
                    copies.append(after_s)
                case Straggle():
                    self._stragglers.append((call, made))
                case Away(for_s=for_s):
                    arrives = False
                    self._go_away(serving, for_s)
                    gone = CoreFault(f'The action server "{serving.server.name}" is away.', "unavailable")
                    self._loop.call_later(ON_THE_WAY_S, self._settle, answer, Unanswered(gone), made, "nothing")
                case _:
                    raise AssertionError(fault)
        if arrives:
            for after_s in copies:
                self._start(serving, call, made, late_s, after_s, answer if heard else None)

    def _start(
        self, serving: Serving, call: Call, made: Made, late_s: float, after_s: float, answer: "asyncio.Future[Answer] | None"
    ) -> None:
        async def deliver() -> None:
            await asyncio.sleep(ON_THE_WAY_S + late_s)
            if after_s:
                await asyncio.sleep(after_s)
            reply, word = await self._deliver(serving, call, made, partial(self._report, answer, call.heartbeat_timeout_s))
            await asyncio.sleep(ON_THE_WAY_S)
            if answer is not None:
                self._settle(answer, reply, made, word)

        self._detach(serving, call.saga_id, deliver())

    def _detach(self, serving: Serving, saga_id: str, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.start(serving.process, work)
        self._late[task] = saga_id
        task.add_done_callback(self._late.pop, context=WORLD)  # and not in the process of the SEC node, which may be dead then

    def _settle(self, answer: "asyncio.Future[Answer]", reply: Answer, made: Made, word: str) -> None:
        if answer in self._unanswered and not answer.done():  # the SEC node lives, and waits
            self._heard(made, word)
            answer.set_result(reply)

    @staticmethod
    def _heard(made: Made, word: str) -> None:
        made.answer = word

    def _report(self, answer: "asyncio.Future[Answer] | None", heartbeat_timeout_s: float, report: kit_progress.Report) -> None:
        """A handler says how far it is, to a call that is still waited for."""
        if answer in self._unanswered and answer in self._listeners:
            silence, tell = self._listeners[answer]
            if heartbeat_timeout_s and not silence.expired():
                silence.reschedule(self._loop.time() + heartbeat_timeout_s)
            tell(Report(report.fraction, report.message))

    async def _deliver(self, serving: Serving, call: Call, made: Made, heard: kit_progress.Listener) -> tuple[Answer, str]:
        message = pb.UndoRequest() if made.undo else pb.DoRequest()
        fill_request(message, call)
        if isinstance(message, pb.DoRequest):
            self._in_hand.setdefault(call.idempotency_key, []).append(message)
        late_s = self._loop.time() - self._began_s - made.at_s
        metadata = {TRACEPARENT: call.traceparent} if call.traceparent else {}
        name = f'action server "{serving.server.name}"'
        try:
            response = await serving.service.deliver(message, max(0.0, call.timeout_s - late_s), metadata, heard=heard)
        finally:
            if isinstance(message, pb.DoRequest):
                self._in_hand[call.idempotency_key].remove(message)
        match response:
            case pb.DoResponse():
                answer = do_answer(response, name, call, MAX_OUTPUT_BYTES)
            case pb.UndoResponse():
                answer = undo_answer(response)
            case kit.Status(code, text):
                answer = status_answer(code, text, name, call)
        word = response.code.name if isinstance(response, kit.Status) else _word(answer)
        made.deliveries.append(word)
        return answer, word

    @contextmanager
    def _around(self, call: kit.Call) -> Iterator[None]:
        """A handler is about to be called, and is. Raises in its place, or behind it, what was scripted."""
        self._changed()
        fault = self._at_handler.pop((call.key, call.phase is kit.Phase.UNDO, call.epoch, call.attempt), None)
        if isinstance(fault, Fail):
            raise kit.ActionFailed(fault.message, code=fault.code)
        dead = kit.Unavailable("The action server has died, says the test.")
        if fault is not None and fault.before:
            raise dead
        yield
        if fault is not None:
            raise dead

    def cancel(self, idempotency_key: str) -> None:
        """Nobody wants the effect of a do any more."""
        for serving in self._serving.values():
            for message in self._in_hand.get(idempotency_key, ()):
                if message.call.action in serving.server.actions.by_name:
                    serving.service.cancel(message)

    async def all_arrived(self, saga_id: str) -> None:
        """Lets the stragglers of a saga arrive; returns when nothing of it is on its way any more."""
        for call, made in [each for each in self._stragglers if each[0].saga_id == saga_id]:
            self._stragglers.remove((call, made))
            serving = next(s for s in self._serving.values() if call.action in s.server.actions.by_name)
            self._start(serving, call, made, 0.0, 0.0, None)
        while late := [task for task, saga in self._late.items() if saga == saga_id]:
            await asyncio.wait(late)
            for task in late:
                with suppress(asyncio.CancelledError):
                    task.result()


def _word(answer: Answer) -> str:
    match answer:
        case Answered(CoreFault()):
            return "failure"
        case Answered(None):
            return "done"
        case Answered():
            return "output"
        case _:
            return "an output that is too large"
