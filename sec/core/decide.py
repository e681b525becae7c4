"""`decide`: what follows from an event. It changes nothing and does nothing: it answers the records to write and the effects to run.

The driver's one rule, in this order: make the records durable, apply them, run the effects. An event that does not fit the state raises
`IllegalTransition`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import assert_never

from msgspec import Struct
from sec_model import OnDeadline, Payload, RetryPolicy
from sec_model.commands import (
    Abort,
    Command,
    InjectError,
    InjectRepeat,
    MarkUndone,
    Pause,
    Resume,
    RetryUndo,
    SetBreakpoint,
    SetDeadline,
    SetMaxInFlight,
    Signal,
    SkipUndo,
    Step,
)
from sec_model.graph import GraphNode
from sec_model.versions import any_version, has_version, newest

from sec.core.controls import NO_CONTROLS, Controls
from sec.core.records import (
    AttemptFailed,
    AttemptUnknown,
    BreakpointHit,
    Commanded,
    DeadlinePassed,
    Done,
    Epoch,
    Failed,
    Fault,
    NodePath,
    Outcome,
    OutcomeUnknown,
    OwnerChanged,
    Phase,
    Pinned,
    Record,
    SecNodeName,
    Started,
    Succeeded,
    UndoFailed,
    UndoFinished,
    UndoSkipped,
    UndoStarted,
)
from sec.core.refusals import refusal
from sec.core.rehearsal import Rehearsal
from sec.core.retry import NextCall, next_call, next_call_of_many
from sec.core.state import NO_TRIES, Mishap, SagaState
from sec.core.transitions import Course, Mark

_RUNNING, _SUCCEEDED, _DO = Course.RUNNING, Mark.SUCCEEDED, Phase.DO
"""As in `sec.core.state`."""
_NEVER_CALLED = Fault("The saga unwinds, and no action server could be reached for a call that was to be made again.", "unwinding")

_BY_HAND = (
    'Node "{node}" cannot be undone by a call: take back by hand what it did, and say so ("secctl saga mark-undone"), '
    'or give it up ("secctl saga skip-undo").'
)
NULL = Payload.json(None)
"""The output of a timer."""

# Events


class Begin(Struct, frozen=True, gc=False):
    """The saga may run on, or something outside changed that it may have waited for."""


class TakenOver(Struct, frozen=True, gc=False):
    """This SEC node owns the saga now, after another one or an earlier session of its own. What is in flight is dispatched again."""

    epoch: Epoch
    sec_node: SecNodeName


class DoAnswered(Struct, frozen=True, gc=False):
    """The action server answered a do: with its output, or with a fault that asserts that there is no effect. `spent_s` and `draw` as in
    `AnswerMissing`."""

    node: NodePath
    result: Payload | Fault
    spent_s: float = 0.0
    draw: float = 0.0


class UndoAnswered(Struct, frozen=True, gc=False):
    """The action server answered an undo: the effect is gone (None), or cannot be undone for good."""

    node: NodePath
    fault: Fault | None


class AnswerMissing(Struct, frozen=True, gc=False):
    """A call ended and says nothing about the effect. `spent_s`: for this node and phase in all. `draw`: a random number in [0, 1)."""

    node: NodePath
    phase: Phase
    error: Fault
    spent_s: float
    draw: float


class NotWaitedFor(Struct, frozen=True, gc=False):
    """The answer to `Hurry`: a do that paused between two calls, or waited for an action server, is not going to be called any more."""

    node: NodePath


class Ordered(Struct, frozen=True, gc=False):
    """A command of an operator. The same one again changes nothing."""

    command_id: str
    by: str
    command: Command


Event = Begin | TakenOver | DoAnswered | UndoAnswered | AnswerMissing | NotWaitedFor | Ordered

# Effects


class Dispatch(Struct, frozen=True, gc=False):
    """Call the action (undo action) of a node after `delay_s`, for at most `timeout_s`. `attempt` counts from 1."""

    node: int
    phase: Phase
    attempt: int
    delay_s: float
    timeout_s: float
    spent_s: float = 0.0
    until_us: int = 0
    """The call is over by this instant (0: there is none): the node is given up then."""
    injected_error: bool = False
    """Do not call: answer a fault in the action server's place."""
    repeats: int = 1
    """Make the call so many times, one after the other, and take the last answer."""


class Hurry(Struct, frozen=True, gc=False):
    """The saga is unwinding: a do that pauses between two calls, or waits for an action server, is not waited for any longer. Drop it and
    answer `NotWaitedFor` at once. A call under way is left alone."""

    node: int


class Withhold(Struct, frozen=True, gc=False):
    """The saga is paused: a call that is not under way is not made. It will be dispatched anew when the pause is over."""

    node: int


Effect = Dispatch | Hurry | Withhold


@dataclass(slots=True)
class Ready:
    """What to write, then what to do. `course`, `mishaps` and `controls` are those of the saga once the records are applied.

    `rehearsal` is for `SagaState.repeat`, once the records are durable: it does the same as applying them.
    `wake_at_us` is the instant at which to call `decide` again, whatever else happens; 0: there is none.
    """

    records: tuple[Record, ...]
    effects: tuple[Effect, ...]
    course: Course
    mishaps: tuple[Mishap, ...]
    controls: Controls
    wake_at_us: int = 0
    rehearsal: Rehearsal | None = field(default=None, compare=False, repr=False)


def decide(state: SagaState, events: Iterable[Event], offered: frozenset[str] | None = None, now_us: int = 0) -> Ready:
    """What follows from events, taken in order, and from what time it is: `now_us`, microseconds since 1970 by the wall clock.

    `offered` are the actions that some action server offers now (None: all). A node whose action is not among them stays startable: it
    is not started, so that nothing has to be undone that never had a chance to run. Call again with `Begin` when that changes.
    As soon as a version is offered of an action that the saga asks for, the saga is pinned to it.
    """
    draft = _Draft(state, now_us)
    with state.rehearsal() as rehearsal:
        for event in events:
            draft.take(event)
        if state.waiting or state.dues:
            draft.end_waits()  # before the clock is looked at: what has come is in time
            draft.look_at_the_clock()
            draft.end_waits()
        draft.advance(offered)
        wake_at_us = min(due.us for due in state.dues.values()) if state.dues else 0
        effects = tuple(draft.wanted_effects()) if draft.effects else ()
        return Ready(tuple(draft.records), effects, state.course, state.mishaps, state.controls, wake_at_us, rehearsal)


class _Draft:
    """The records and effects of one `decide`, while the state rehearses them."""

    __slots__ = ("effects", "now_us", "records", "state", "was_running")

    def __init__(self, state: SagaState, now_us: int) -> None:
        self.state = state
        self.now_us = now_us
        self.records: list[Record] = []
        self.effects: list[Effect] = []
        self.was_running = state.course is _RUNNING

    def take(self, event: Event) -> None:
        match event:
            case DoAnswered():
                result = event.result
                if not isinstance(result, Fault):
                    self._succeed(event.node, result)
                elif self._is_forward_only(event.node):
                    self._try_again(event, result)
                else:
                    self._write(Failed(event.node, result))
            case Begin():
                pass
            case TakenOver(epoch, sec_node):
                self._write(OwnerChanged(epoch, sec_node))
                for index in sorted(self.state.in_flight):
                    if index in self.state.expired:
                        self._write(OutcomeUnknown(self._path(index), self._why_unknown(index)))
                    else:
                        self._dispatch(index)
            case UndoAnswered(node, fault):
                self._write(UndoFinished(node) if fault is None else UndoFailed(node, fault))
            case AnswerMissing():
                self._answer_missing(event)
            case NotWaitedFor(node):
                index = self.state.graph.by_path.get(node, -1)
                if self.state.in_flight.get(index) is Phase.DO:  # else its answer came first
                    self._write(OutcomeUnknown(node, self._why_unknown(index)))
            case Ordered():
                self._order(event)
            case _:
                assert_never(event)

    def look_at_the_clock(self) -> None:
        """Takes note of what the clock has brought, after all events have been taken: an answer that is there is in time too."""
        state = self.state
        if not state.dues:
            return
        passed = sorted((due.us, path) for path, due in state.dues.items() if due.us <= self.now_us)
        for _, path in passed:
            due = state.dues.get(path)
            if due is None or state.course is not Course.RUNNING:
                continue  # one before it has ended all that
            if due.then is None:
                self._succeed(path, NULL)
                continue
            self._write(DeadlinePassed(path))
            index = state.graph.by_path.get(path, -1)
            if due.then is OnDeadline.PAUSE:
                self._withhold()
            elif index in state.expired and index in state.in_flight:
                self.effects.append(Hurry(index))

    def end_waits(self) -> None:
        """Of signals: those that have come, and those that are not waited for any longer."""
        state = self.state
        if not state.waiting or state.course is not Course.RUNNING:
            return
        for index in sorted(state.waiting):
            path = self._path(index)
            if index in state.signals:
                self._succeed(path, state.signals[index])
            elif index in state.expired:
                self._write(Failed(path, Fault(f'The signal of node "{path}" did not come by its deadline.', "deadline_passed")))
                return

    def advance(self, offered: frozenset[str] | None) -> None:
        """Starts what may start, after all events have been taken."""
        state = self.state
        if state.course is _RUNNING:
            if offered is not None and any_version(offered):
                self._pin(offered)
            while state.startable and self._start(offered):
                pass  # a wait that was over before it began has let others start
            if state.marks[state.graph.final] is _SUCCEEDED:
                self._write(Done(Outcome.DONE))
        elif state.course is Course.UNWINDING:
            if self.was_running:
                self._hurry()
            self._undo()
            if state.unwound:
                self._write(Done(Outcome.UNDONE))

    def _pin(self, offered: frozenset[str]) -> None:
        """Pins the newest versions that fit. An action that is offered without a version alone needs no record: its first start says as what it is called."""
        for asked in self.state.graph.to_pin:
            if asked not in self.state.pins and (offer := newest(asked, offered)) is not None and has_version(offer):
                self._write(Pinned(asked, offer))

    def _start(self, offered: frozenset[str] | None) -> bool:
        """True when there may be more to start now."""
        state = self.state
        for index in self._startable():
            node, path = state.graph.nodes[index], self._path(index)
            if node.action is not None and offered is not None and state.offer_of(node.action.action, offered) is None:
                continue
            if state.controls is not NO_CONTROLS:
                if not self._may_start(node):
                    continue
                if (path, False) in state.controls.breakpoints:
                    self._hit(path, after=False)
                    if not self._may_start(node):
                        continue
            due_us = self._due_us(node)
            self._write(Started(path, due_us))
            if index in state.signals:
                self._succeed(path, state.signals[index])
                return True
            if node.timer is not None and due_us <= self.now_us:
                self._succeed(path, NULL)
                return True
            if node.action is not None:
                self._dispatch(index)
        return False

    def _undo(self) -> None:
        """Undoes what may be undone. Those without an undo action come when nothing else is left to do: they need an operator."""
        state = self.state
        by_hand = []
        for index in sorted(state.undoable):
            node, path = state.graph.nodes[index], self._path(index)
            if not node.has_undo_action:
                by_hand.append(path)
            elif self._may_start(node):
                self._write(UndoStarted(path))
                self._dispatch(index)
        if not state.in_flight and len(by_hand) == len(state.undoable) and not state.controls.paused:
            for path in by_hand:
                self._write(UndoFailed(path, Fault(_BY_HAND.format(node=path), "undone_by_hand")))

    def _due_us(self, node: GraphNode) -> int:
        """The instant that a node gets with its start. What an operator has set stays."""
        if node.timer is not None:
            return node.timer.until_us or max(1, self.now_us + round(node.timer.after_s * 1e6))
        if node.deadline is None or node.path in self.state.deadlines_set:
            return 0
        return max(1, self.now_us + round(node.deadline.after_s * 1e6))

    def _succeed(self, node: NodePath, output: Payload) -> None:
        self._write(Succeeded(node, output))
        breakpoints = self.state.controls.breakpoints
        if breakpoints and self.state.course is _RUNNING and (node, True) in breakpoints:
            self._hit(node, after=True)

    def _startable(self) -> list[int]:
        """In order, but what will pause the saga comes first: the others are then not started, only to be withheld."""
        controls = self.state.controls
        if controls.paused or not controls.breakpoints:
            startable = list(self.state.startable)
            startable.sort()
            return startable
        return sorted(self.state.startable, key=lambda index: ((self._path(index), False) not in controls.breakpoints, index))

    def _hit(self, node: NodePath, *, after: bool) -> None:
        self._write(BreakpointHit(node, after))
        self._withhold()

    def _withhold(self) -> None:
        state = self.state
        held = (index for index in state.in_flight if not state.controls.may_dispatch(index) and index not in state.expired)
        self.effects.extend(Withhold(index) for index in sorted(held))

    def _may_start(self, node: GraphNode) -> bool:
        controls = self.state.controls
        room = node.waits or controls.has_room(len(self.state.in_flight))
        return room and (not controls.paused or controls.steps > 0)

    def _order(self, event: Ordered) -> None:
        state, command = self.state, event.command
        if event.command_id in state.commands:
            return
        because = refusal(state, command)
        self._write(Commanded(event.command_id, event.by, command, because))
        if because:
            return
        match command:
            case Pause():
                self._withhold()
            case Resume():
                for index in sorted(state.in_flight.keys() - state.expired.keys()):
                    self._dispatch(index)
            case RetryUndo(node):
                self._write(UndoStarted(node))
                self._dispatch(state.graph.index_of(node))
            case SkipUndo(node, reason):
                self._write(UndoSkipped(node, reason))
            case MarkUndone(node):
                self._write(UndoFinished(node))
            case Abort() | Step() | SetBreakpoint() | SetMaxInFlight() | InjectError() | InjectRepeat() | Signal() | SetDeadline():
                pass
            case _:
                assert_never(command)

    def _write(self, record: Record) -> None:
        self.state.apply(record)
        self.records.append(record)

    def _answer_missing(self, event: AnswerMissing) -> None:
        state = self.state
        tries = state.tries.get(state.graph.by_path.get(event.node, -1), NO_TRIES)
        attempt = tries.count + 1
        self._write(AttemptUnknown(event.node, event.phase, attempt, event.error, event.spent_s))
        index = state.graph.index_of(event.node)
        if event.phase is Phase.DO and (state.course is not Course.RUNNING or index in state.expired):
            self._write(OutcomeUnknown(event.node, self._why_unknown(index)))
            return
        call = self._next_call(index, event.phase, attempt, event.spent_s, event.draw)
        if call is not None:
            self._dispatch(index, call)
        elif event.phase is Phase.DO:
            self._write(OutcomeUnknown(event.node, event.error))
        else:
            self._write(UndoFailed(event.node, event.error))

    def _try_again(self, event: DoAnswered, fault: Fault) -> None:
        """Behind a point of no return a failure is not the end."""
        index = self.state.graph.index_of(event.node)
        attempt = self.state.tries.get(index, NO_TRIES).count + 1
        self._write(AttemptFailed(event.node, attempt, fault, event.spent_s))
        self._dispatch(index, self._next_call(index, Phase.DO, attempt, event.spent_s, event.draw))

    def _next_call(self, index: int, phase: Phase, calls_made: int, spent_s: float, draw: float) -> NextCall | None:
        policy = self._policy(index, phase)
        if phase is _DO and self.state.graph.nodes[index].never_given_up:
            return next_call_of_many(policy, calls_made, draw)
        return next_call(policy, calls_made, spent_s, draw)

    def wanted_effects(self) -> list[Effect]:
        """The effects without what came later in the same step: the node was answered, dispatched anew, or has expired, or the saga paused."""
        state, controls, wanted = self.state, self.state.controls, list[Effect]()
        dispatched: set[int] = set()
        for effect in reversed(self.effects):
            node = effect.node
            if node not in state.in_flight:
                continue
            if isinstance(effect, Dispatch):
                if node in dispatched or node in state.expired or (controls is not NO_CONTROLS and not controls.may_dispatch(node)):
                    continue
                dispatched.add(node)
            wanted.append(effect)
        wanted.reverse()
        return wanted

    def _why_unknown(self, index: int) -> Fault:
        tries = self.state.tries.get(index, NO_TRIES)
        if index in self.state.expired:
            last = "" if tries.last is None else f" The last that went wrong: {tries.last.error.message}"
            return Fault(f'Node "{self._path(index)}" did not end by its deadline.{last}', "deadline_passed")
        return _NEVER_CALLED if tries.last is None else tries.last.error

    def _hurry(self) -> None:
        self.effects.extend(Hurry(index) for index, phase in sorted(self.state.in_flight.items()) if phase is Phase.DO)

    def _dispatch(self, index: int, call: NextCall | None = None) -> None:
        """Dispatches the node's next attempt; at once, unless the policy said otherwise."""
        controls = self.state.controls
        phase = self.state.in_flight[index]
        tries = self.state.tries.get(index, NO_TRIES)
        if call is None:
            call = self._next_call(index, phase, 0, tries.spent_s, 0.0)
        if call is None:
            # Where no call is left by the policy, a takeover still makes one: only an answer can tell what the last one did.
            call = NextCall(0.0, self._policy(index, phase).attempt_timeout_s)
        injected_error, repeats = False, 1
        if controls is not NO_CONTROLS:
            key = (self._path(index), phase)
            injected_error, repeats = key in controls.errors, controls.repeats.get(key, 1)
        until_us = self._until_us(index, phase) if self.state.dues else 0
        self.effects.append(
            Dispatch(index, phase, tries.count + 1, call.delay_s, call.timeout_s, tries.spent_s, until_us, injected_error, repeats)
        )

    def _until_us(self, index: int, phase: Phase) -> int:
        """A call does not outlast the deadline of a node that is then given up."""
        due = self.state.dues.get(self._path(index))
        return due.us if phase is _DO and due is not None and due.then is OnDeadline.FAIL else 0

    def _is_forward_only(self, path: NodePath) -> bool:
        index = self.state.graph.by_path.get(path)
        return index is not None and self.state.graph.nodes[index].forward_only

    def _policy(self, index: int, phase: Phase) -> RetryPolicy:
        action = self.state.graph.nodes[index].action
        assert action is not None, "only actions are dispatched"
        return action.retry if phase is _DO else action.undo_retry

    def _path(self, index: int) -> NodePath:
        return self.state.graph.nodes[index].path
