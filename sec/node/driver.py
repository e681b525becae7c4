"""Drives one saga that this SEC node owns: makes records durable, applies them, runs the effects, in this order, one step after the other.

Events that come in during a step wait and are decided together in the next one, so that a saga has one append under way at most. A driver
that is closed, for whatever reason, writes and dispatches nothing any more.
"""

import asyncio
import logging
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Protocol, assert_never

from msgspec import Struct, structs
from sec_model import Payload

from sec.core.decide import (
    AnswerMissing,
    Begin,
    Dispatch,
    DoAnswered,
    Effect,
    Event,
    Hurry,
    NotWaitedFor,
    Ready,
    UndoAnswered,
    Withhold,
    decide,
)
from sec.core.errors import IllegalTransition
from sec.core.records import Epoch, Fault, NodePath, Phase, SagaId, SecNodeName
from sec.core.state import SagaState
from sec.core.transitions import Course
from sec.dispatch.calls import Answer, Answered, Busy, Call, NotOffered, Pending, Report, StaleEpoch, Tell, Unanswered
from sec.node import failpoints
from sec.store.errors import Fenced
from sec.store.kv import KvError
from sec.store.sagas import SagaHead, Written

_log = logging.getLogger(__name__)


MAX_SLEEP_S = 3600.0
"""An alarm is set for so long at most. That the wall clock was set is seen by `look_again`."""

MIN_TIMEOUT_S = 0.001
"""Of a call that is made in the last moment before a deadline."""

_ENDS_OF_DISPATCHES = (DoAnswered, UndoAnswered, AnswerMissing, NotWaitedFor)

BUSY_PAUSE_S = 0.05
MAX_BUSY_PAUSE_S = 2.0
"""Between calls of action servers that are too busy. They do not count as attempts, so that a rush of sagas does not make them fail."""


class Host(Protocol):
    """What a driver needs of the node that runs it."""

    @property
    def sec_node(self) -> SecNodeName: ...

    @property
    def offered(self) -> frozenset[str]:
        """Actions that some action server offers now."""
        ...

    def may_dispatch(self) -> bool:
        """False past the session's local deadline: then nothing may be dispatched any more, though nobody has told us yet."""
        ...

    def draw(self) -> float:
        """A random number in [0, 1)."""
        ...

    def now_us(self) -> int:
        """Microseconds since 1970 by the wall clock, by which deadlines and timers go."""
        ...

    def at_most(self, events: list[Event]) -> int:
        """How many of these events, from the first on, may go into one append."""
        ...

    def append(self, driver: "SagaDriver", ready: Ready, written: Written) -> None:
        """Makes the records of a step durable, and tells when they are `written`, not before this returns. Raises `Fenced`."""
        ...

    def call(self, call: Call, tell: Tell) -> Pending:
        """Makes a call of an action that is offered, and tells the answer. Cancel it when that is not wanted any more."""
        ...

    def called(self, call: Call, answer: Answer, took_s: float) -> None:
        """Is told of each answer."""
        ...

    def cancel(self, idempotency_key: str) -> None:
        """Tells the action server that nobody wants the effect of a do under way any more. It is waited for all the same."""
        ...

    def reported(self, driver: "SagaDriver", node: NodePath, report: Report | None) -> None:
        """A call under way has said how far it is; None: it is over."""
        ...

    async def still_owned(self, driver: "SagaDriver") -> bool:
        """Asks the store. Raises `KvError`."""
        ...

    def ended(self, driver: "SagaDriver") -> None:
        """The saga has ended: the driver has closed itself."""
        ...

    def lost(self, driver: "SagaDriver", reason: str) -> None:
        """The saga is not ours any more, as far as the driver can tell: it has closed itself."""
        ...

    def broken(self, driver: "SagaDriver", reason: str) -> None:
        """The saga cannot go on for a fault of ours: the driver has closed itself."""
        ...


class _Stage(Enum):
    PAUSING = "pausing"
    """Before its first call, or the next after one of a busy server."""
    WAITING = "waiting"
    """For an action server that offers its action."""
    CALLING = "calling"
    ANSWERED = "answered"
    """What came of it is on its way through a step."""


_PAUSING, _CALLING, _ANSWERED, _DO, _UNDO = _Stage.PAUSING, _Stage.CALLING, _Stage.ANSWERED, Phase.DO, Phase.UNDO
"""As in `sec.core.state`."""


class _InFlight(Struct):
    """A node of which something is under way: a dispatch, or what came of it."""

    node: int
    path: NodePath
    stage: _Stage
    dispatch: Dispatch | None = None
    call: Call | None = None
    """What to send. None: nothing was sent yet."""
    pending: Pending | None = None
    """What it waits for, and what to cancel when it is not waited for any longer."""
    calls_left: int = 1
    began: float = 0.0
    """When the call under way was made, by the event loop's clock."""
    busy_pause_s: float = BUSY_PAUSE_S
    reported: bool = False
    """The call under way has said how far it is."""
    hurried: bool = False
    """The saga unwinds: should it come to wait again, it is given up."""
    withheld: bool = False
    """The saga is paused: should it come to wait again, it is dropped, and dispatched anew after the pause."""

    def stop(self) -> None:
        """What it waits for is not waited for any longer."""
        if self.pending is not None:
            self.pending.cancel()
            self.pending = None


class SagaDriver:
    """Drives one saga. `post` events; it calls the `Host` back."""

    __slots__ = (
        "_alarm",
        "_append_ended",
        "_appending",
        "_host",
        "_in_flight",
        "_inbox",
        "_inbox_since",
        "_loop",
        "_quiet_since",
        "_stepping",
        "_wake_at_us",
        "closed",
        "epoch",
        "head",
        "state",
        "step_since",
    )

    def __init__(self, head: SagaHead, state: SagaState, epoch: Epoch, host: Host) -> None:
        self.head = head
        self.state = state
        self.epoch = epoch
        self.closed = False
        self._host = host
        self._inbox: list[Event] = []
        self._inbox_since = 0.0
        self.step_since: float | None = None
        """When the oldest event came of which what follows is not written yet, by the event loop's clock. None: there is none."""
        self._stepping = False
        """A step is due or under way."""
        self._appending = False
        self._append_ended: asyncio.Future[None] | None = None
        """There when somebody waits for the append under way."""
        self._in_flight: dict[int, _InFlight] = {}
        self._alarm: asyncio.TimerHandle | None = None
        self._wake_at_us = 0
        self._loop = asyncio.get_running_loop()
        self._quiet_since = self._loop.time()

    @property
    def saga_id(self) -> SagaId:
        return self.state.saga_id

    def post(self, event: Event) -> None:
        """Takes in an event. What follows from it happens later."""
        if self.closed:
            return
        if not self._inbox:
            self._inbox_since = self._loop.time()
        self._inbox.append(event)
        if not self._stepping:
            self.step_since = self._inbox_since
            self._stepping = True
            self._loop.call_soon(self._in_a_step, self._take_steps)

    def offers_changed(self) -> None:
        """Other actions are offered than before. Wakes the saga when it may have waited for one."""
        self._call_what_waits()
        if self.state.startable:
            self.post(Begin())

    @property
    def idle_since(self) -> float | None:
        """Since when the saga only waits (for a timer, a signal, an operator, a pause before a retry, an action server), by the event loop's
        clock. None: it is at work, and another owner would have to make calls again."""
        if self.closed or self._stepping or self._inbox:
            return None
        if any(each.stage in (_Stage.CALLING, _Stage.ANSWERED) for each in self._in_flight.values()):
            return None
        return self._quiet_since

    def look_again(self) -> None:
        """Takes a step if one is due that no event has brought about: an offer or an alarm was missed, or the wall clock was set."""
        if self.closed or self._stepping:
            return
        if self._in_flight:
            self._call_what_waits()
        due = self._wake_at_us and self._wake_at_us <= self._host.now_us()
        if due or (self.state.startable and self._could_start()):
            self.post(Begin())

    def _call_what_waits(self) -> None:
        for in_flight in [each for each in self._in_flight.values() if each.stage is _Stage.WAITING]:
            self._guarded(self._make_call, in_flight)

    def _could_start(self) -> bool:
        if self.state.controls.paused:
            return False
        nodes, offered = self.state.graph.nodes, self._host.offered
        return any(
            (action := nodes[index].action) is None or self.state.offer_of(action.action, offered) is not None
            for index in self.state.startable
        )

    async def close(self) -> None:
        """Stops at once. An append under way is waited for, so that afterwards nothing of this driver is on its way to the store."""
        self.shut()
        if self._appending:
            if self._append_ended is None:
                self._append_ended = self._loop.create_future()
            await asyncio.wait([self._append_ended])

    def shut(self) -> None:
        """Stops at once and does not wait for an append under way, which its fence takes care of."""
        self.closed = True
        self._inbox.clear()
        self._wake_at(0)
        for in_flight in self._in_flight.values():
            self._forget_report(in_flight)
            in_flight.stop()
        self._in_flight.clear()

    def _take_steps(self) -> None:
        """Decides and carries out until the inbox is empty or records have to be written first."""
        while self._inbox and not self.closed:
            self.step_since = self._inbox_since
            count = self._host.at_most(self._inbox)
            events, self._inbox = self._inbox[:count], self._inbox[count:]
            ready = decide(self.state, events, self._host.offered, self._host.now_us())
            if ready.records:
                failpoints.reach("before_commit")
                self._host.append(self, ready, partial(self._append_has_ended, events, ready))
                self._appending = True
                return
            self._carry_out(events, ready)
        self._rest()

    def _append_has_ended(self, events: list[Event], ready: Ready, error: Exception | None) -> None:
        self._appending = False
        if self._append_ended is not None:
            self._append_ended.set_result(None)
            self._append_ended = None
        self._in_a_step(self._written, events, ready, error)

    def _written(self, events: list[Event], ready: Ready, error: Exception | None) -> None:
        """Goes on with a step whose records are durable."""
        if error is not None:
            raise error
        failpoints.reach("after_commit")
        self.take(ready)
        failpoints.reach("after_apply")
        self._carry_out(events, ready)
        self._take_steps()

    def _carry_out(self, events: list[Event], ready: Ready) -> None:
        self._forget_answered(events)
        self.run_effects(ready)
        if self.state.course.ended:
            self.shut()
            self._host.ended(self)

    def _in_a_step(self, go_on: Callable[..., None], *args: object) -> None:
        try:
            go_on(*args)
        except Fenced as error:
            self._end()
            self._host.lost(self, str(error))
        except KvError as error:
            self._end()
            self._host.lost(self, f'Records of saga "{self.saga_id}" could not be written, and are given up: {error}')
        except IllegalTransition as error:
            self._end()
            self._host.broken(self, str(error))
        except Exception as error:
            self._rest()
            self._broken("A step", error)

    def _end(self) -> None:
        self.shut()
        self._rest()

    def _rest(self) -> None:
        """No step is under way."""
        self._stepping = False
        self.step_since = None
        self._quiet_since = self._loop.time()

    def _broken(self, what: str, error: BaseException) -> None:
        _log.error('%s of saga "%s" failed.', what, self.saga_id, exc_info=error)
        self.shut()
        self._host.broken(self, f'{what} of saga "{self.saga_id}" failed: {error!r}')

    def take(self, ready: Ready) -> None:
        """Takes the records of a step that are durable now into the state."""
        assert ready.rehearsal is not None, "every step of `decide` has one"
        self.state.repeat(ready.rehearsal)

    def run_effects(self, ready: Ready) -> None:
        """Runs the effects of a step whose records are durable and applied."""
        for effect in ready.effects:
            if not self.closed:
                self._run_effect(effect)
        if not self.closed and (ready.wake_at_us or self._wake_at_us):
            self._wake_at(ready.wake_at_us)

    def _wake_at(self, instant_us: int) -> None:
        """Looks at the clock again at this instant; 0: not until something happens."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._wake_at_us = instant_us
        if instant_us:
            wait_s = min(max(0.0, (instant_us - self._host.now_us()) / 1e6), MAX_SLEEP_S)
            self._alarm = self._loop.call_later(wait_s, self.post, Begin())

    def _forget_answered(self, events: list[Event]) -> None:
        """A node's dispatch is over when what came of it is in the log: until then the node must not be dispatched again."""
        for event in events:
            if isinstance(event, _ENDS_OF_DISPATCHES):
                self._in_flight.pop(self.state.graph.index_of(event.node), None)

    def _run_effect(self, effect: Effect) -> None:
        match effect:
            case Dispatch(node=node):
                if node in self._in_flight:
                    self._in_flight[node].withheld = False
                else:
                    self._dispatch(node, effect)
            case Hurry(node):
                self._hurry(node)
            case Withhold(node):
                self._withhold(node)
            case _:
                assert_never(effect)

    def _hurry(self, node: int) -> None:
        in_flight = self._in_flight.get(node)
        if in_flight is None:  # it was withheld, and must not be dispatched any more
            in_flight = self._in_flight[node] = _InFlight(node, self._path(node), _Stage.PAUSING)
        in_flight.hurried = True
        if in_flight.stage is _Stage.CALLING:
            self._host.cancel(self.state.idempotency_key(node))
        if in_flight.stage in (_Stage.PAUSING, _Stage.WAITING):
            self._give_up(in_flight)

    def _give_up(self, in_flight: _InFlight) -> None:
        in_flight.stop()
        in_flight.stage = _Stage.ANSWERED
        self.post(NotWaitedFor(in_flight.path))

    def _withhold(self, node: int) -> None:
        in_flight = self._in_flight.get(node)
        if in_flight is None:
            return
        in_flight.withheld = True
        if in_flight.stage in (_Stage.PAUSING, _Stage.WAITING):
            in_flight.stop()
            del self._in_flight[node]

    def _guarded(self, go_on: Callable[..., None], *args: object) -> None:
        """Goes on with a dispatch. A fault of ours brings no event, and so would leave the saga standing still without a word."""
        if self.closed:
            return
        try:
            go_on(*args)
        except Exception as error:
            self._broken("A dispatch", error)

    def _dispatch(self, node: int, dispatch: Dispatch) -> None:
        in_flight = self._in_flight[node] = _InFlight(node, self._path(node), _PAUSING, dispatch, calls_left=dispatch.repeats)
        if dispatch.injected_error:
            fault = Fault("An operator had this call fail.", "injected")
            self._answered(in_flight, dispatch, fault, dispatch.spent_s)
        elif dispatch.delay_s:
            self._pause(in_flight, dispatch.delay_s)
        else:
            self._guarded(self._make_call, in_flight)

    def _pause(self, in_flight: _InFlight, pause_s: float) -> None:
        """The next call comes after a pause."""
        in_flight.stage = _Stage.PAUSING
        in_flight.pending = self._loop.call_later(pause_s, self._guarded, self._make_call, in_flight)

    def _make_call(self, in_flight: _InFlight) -> None:
        """Makes the next call of a dispatch, as soon as some action server offers its action."""
        dispatch = in_flight.dispatch
        assert dispatch is not None, "what was never dispatched is not called"
        call = in_flight.call
        if call is None:
            call = in_flight.call = self._call(dispatch)
        in_flight.pending = None
        if call.action not in self._host.offered:
            in_flight.stage = _Stage.WAITING
            return
        if not self._host.may_dispatch():
            return  # the session is as good as lost, and whoever looks after it closes this driver
        in_flight.stage = _CALLING
        in_flight.began = self._loop.time()
        failpoints.reach("before_call")
        in_flight.pending = self._host.call(self._in_time(call, dispatch), partial(self._guarded, self._take_answer, in_flight))

    def heard(self, call: Call, report: Report) -> None:
        """A call has said how far it is. Of one that is not under way any more that counts for nothing."""
        in_flight = self._in_flight.get(self.state.graph.index_of(call.node))
        under_way = None if in_flight is None or in_flight.stage is not _Stage.CALLING else in_flight.call
        if in_flight is not None and under_way is not None and (under_way.phase, under_way.attempt) == (call.phase, call.attempt):
            in_flight.reported = True
            self._host.reported(self, in_flight.path, report)

    def _forget_report(self, in_flight: _InFlight) -> None:
        if in_flight.reported:
            in_flight.reported = False
            self._host.reported(self, in_flight.path, None)

    def _take_answer(self, in_flight: _InFlight, answer: Answer) -> None:
        """What follows from the answer of the call that was made last."""
        in_flight.pending = None
        self._forget_report(in_flight)
        dispatch, call = in_flight.dispatch, in_flight.call
        assert dispatch is not None
        assert call is not None
        took_s = self._loop.time() - in_flight.began
        self._host.called(call, answer, took_s)
        failpoints.reach("after_call")
        spent_s = dispatch.spent_s + dispatch.delay_s + took_s
        match answer:
            case Answered(result):
                in_flight.calls_left -= 1
                if in_flight.calls_left > 0:
                    self._make_call(in_flight)
                else:
                    self._answered(in_flight, dispatch, result, spent_s)
            case Unanswered(error):
                self._answer_missing(in_flight, dispatch, error, spent_s)
            case StaleEpoch(message):
                refused = self._refused(in_flight, dispatch, message, spent_s)
                looking = in_flight.pending = self._loop.create_task(refused, name=f"{self.saga_id}/{in_flight.path}")
                looking.add_done_callback(self._refusal_looked_into)
            case NotOffered() | Busy():
                self._not_taken(in_flight, answer)
            case _:
                assert_never(answer)

    def _not_taken(self, in_flight: _InFlight, answer: NotOffered | Busy) -> None:
        """The server has not begun with the call, which is no attempt, and which is made again unless it is not wanted any longer."""
        if in_flight.hurried:
            self._give_up(in_flight)
        elif in_flight.withheld:
            del self._in_flight[in_flight.node]
        elif isinstance(answer, Busy):
            self._pause(in_flight, in_flight.busy_pause_s * (1 - 0.5 * self._host.draw()))
            in_flight.busy_pause_s = min(MAX_BUSY_PAUSE_S, 2 * in_flight.busy_pause_s)
        else:
            self._make_call(in_flight)

    def _in_time(self, call: Call, dispatch: Dispatch) -> Call:
        """The call with no more time than its node has."""
        if not dispatch.until_us:
            return call
        left_s = (dispatch.until_us - self._host.now_us()) / 1e6
        return structs.replace(call, timeout_s=max(MIN_TIMEOUT_S, min(call.timeout_s, left_s)))

    def _answered(self, in_flight: _InFlight, dispatch: Dispatch, result: Payload | Fault | None, spent_s: float) -> None:
        in_flight.stage = _ANSWERED
        if dispatch.phase is _UNDO:
            assert not isinstance(result, Payload)
            self.post(UndoAnswered(in_flight.path, result))
        else:
            assert result is not None
            self.post(DoAnswered(in_flight.path, result, spent_s, self._host.draw()))

    def _answer_missing(self, in_flight: _InFlight, dispatch: Dispatch, error: Fault, spent_s: float) -> None:
        in_flight.stage = _Stage.ANSWERED
        self.post(AnswerMissing(in_flight.path, dispatch.phase, error, spent_s, self._host.draw()))

    async def _refused(self, in_flight: _InFlight, dispatch: Dispatch, message: str, spent_s: float) -> None:
        """An action server knows of a later owner. The store has the last word on that."""
        try:
            owned = await self._host.still_owned(self)
        except KvError:
            owned = False  # when in doubt let go: it costs a claim, never safety
        if self.closed:
            return
        in_flight.pending = None  # it is this task, which must not cancel itself
        if owned:
            fault = Fault(f"The action server refused the call as one of a former owner, which it is not: {message}", "stale_epoch")
            self._answer_missing(in_flight, dispatch, fault, spent_s)
        else:
            self.shut()
            self._host.lost(self, f'An action server refused a call of saga "{self.saga_id}" in epoch {self.epoch}: {message}')

    def _refusal_looked_into(self, looking: "asyncio.Task[None]") -> None:
        if not looking.cancelled() and not self.closed and (error := looking.exception()) is not None:
            self._broken("A dispatch", error)

    def _call(self, dispatch: Dispatch) -> Call:
        state = self.state
        node = state.graph.nodes[dispatch.node]
        assert node.action is not None, "only actions are dispatched"
        policy = node.action.retry if dispatch.phase is _DO else node.action.undo_retry
        return Call(
            saga_id=state.saga_id,
            saga_uid=state.uid,
            node=node.path,
            action=state.pins[node.action.action],
            phase=dispatch.phase,
            idempotency_key=state.idempotency_key(dispatch.node),
            epoch=self.epoch,
            attempt=dispatch.attempt,
            sec_node=self._host.sec_node,
            params=self.head.params if node.params_of is None else state.output_of(node.params_of),
            inputs={name: state.output_of(index) for name, index in node.inputs},
            output=state.outputs.get(dispatch.node) if dispatch.phase is _UNDO else None,
            timeout_s=dispatch.timeout_s,
            traceparent=self.head.traceparent,
            cancelled=dispatch.phase is _DO and state.course is not Course.RUNNING,
            heartbeat_timeout_s=policy.heartbeat_timeout_s or 0.0,
        )

    def _path(self, node: int) -> NodePath:
        return self.state.graph.nodes[node].path
