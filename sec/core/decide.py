"""`decide`: what follows from an event. It changes nothing and does nothing: it answers the records to write and the effects to run.

The driver's one rule, in this order: make the records durable, apply them, run the effects. An event that does not fit the state raises
`IllegalTransition`.
"""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import assert_never

from sec_model import Payload, RetryPolicy
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
    SetMaxInFlight,
    SkipUndo,
    Step,
)

from sec.core.controls import Controls, refusal
from sec.core.records import (
    AttemptUnknown,
    BreakpointHit,
    Commanded,
    Done,
    Epoch,
    Failed,
    Fault,
    NodePath,
    Outcome,
    OutcomeUnknown,
    OwnerChanged,
    Phase,
    Record,
    SecNodeName,
    Started,
    Succeeded,
    UndoFailed,
    UndoFinished,
    UndoSkipped,
    UndoStarted,
)
from sec.core.retry import NextCall, next_call
from sec.core.state import NO_TRIES, Mishap, SagaState
from sec.core.transitions import Course, Mark

_NEVER_CALLED = Fault("The saga unwinds, and no action server could be reached for a call that was to be made again.", "unwinding")

# Events


@dataclass(frozen=True, slots=True)
class Begin:
    """The saga may run on, or something outside changed that it may have waited for."""


@dataclass(frozen=True, slots=True)
class TakenOver:
    """This SEC node owns the saga now, after another one or an earlier session of its own. What is in flight is dispatched again."""

    epoch: Epoch
    sec_node: SecNodeName


@dataclass(frozen=True, slots=True)
class DoAnswered:
    """The action server answered a do: with its output, or with a fault that asserts that there is no effect."""

    node: NodePath
    result: Payload | Fault


@dataclass(frozen=True, slots=True)
class UndoAnswered:
    """The action server answered an undo: the effect is gone (None), or cannot be undone for good."""

    node: NodePath
    fault: Fault | None


@dataclass(frozen=True, slots=True)
class AnswerMissing:
    """A call ended and says nothing about the effect. `spent_s`: for this node and phase in all. `draw`: a random number in [0, 1)."""

    node: NodePath
    phase: Phase
    error: Fault
    spent_s: float
    draw: float


@dataclass(frozen=True, slots=True)
class NotWaitedFor:
    """The answer to `Hurry`: a do that paused between two calls, or waited for an action server, is not going to be called any more."""

    node: NodePath


@dataclass(frozen=True, slots=True)
class Ordered:
    """A command of an operator. The same one again changes nothing."""

    command_id: str
    by: str
    command: Command


Event = Begin | TakenOver | DoAnswered | UndoAnswered | AnswerMissing | NotWaitedFor | Ordered

# Effects


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Call the action (undo action) of a node after `delay_s`, for at most `timeout_s`. `attempt` counts from 1."""

    node: int
    phase: Phase
    attempt: int
    delay_s: float
    timeout_s: float
    spent_s: float = 0.0
    injected_error: bool = False
    """Do not call: answer a fault in the action server's place."""
    repeats: int = 1
    """Make the call so many times, one after the other, and take the last answer."""


@dataclass(frozen=True, slots=True)
class Hurry:
    """The saga is unwinding: a do that pauses between two calls, or waits for an action server, is not waited for any longer. Drop it and
    answer `NotWaitedFor` at once. A call under way is left alone."""

    node: int


@dataclass(frozen=True, slots=True)
class Withhold:
    """The saga is paused: a call that is not under way is not made. It will be dispatched anew when the pause is over."""

    node: int


Effect = Dispatch | Hurry | Withhold


@dataclass(frozen=True, slots=True)
class Ready:
    """What to write, then what to do. `course`, `mishaps` and `controls` are those of the saga once the records are applied."""

    records: tuple[Record, ...]
    effects: tuple[Effect, ...]
    course: Course
    mishaps: tuple[Mishap, ...]
    controls: Controls


def decide(state: SagaState, events: Iterable[Event], offered: AbstractSet[str] | None = None) -> Ready:
    """What follows from events, taken in order.

    `offered` are the actions that some action server offers now (None: all). A node whose action is not among them stays startable: it
    is not started, so that nothing has to be undone that never had a chance to run. Call again with `Begin` when that changes.
    """
    draft = _Draft(state)
    with state.rehearsal():
        for event in events:
            draft.take(event)
        draft.advance(offered)
        return Ready(tuple(draft.records), tuple(draft.wanted_effects()), state.course, state.mishaps, state.controls)


class _Draft:
    """The records and effects of one `decide`, while the state rehearses them."""

    def __init__(self, state: SagaState) -> None:
        self.state = state
        self.records: list[Record] = []
        self.effects: list[Effect] = []
        self.was_running = state.course is Course.RUNNING

    def take(self, event: Event) -> None:
        match event:
            case Begin():
                pass
            case TakenOver(epoch, sec_node):
                self._write(OwnerChanged(epoch, sec_node))
                for index in sorted(self.state.in_flight):
                    self._dispatch(index)
            case DoAnswered(node, result):
                self._write(Failed(node, result) if isinstance(result, Fault) else Succeeded(node, result))
                if self.state.course is Course.RUNNING and (node, True) in self.state.controls.breakpoints:
                    self._hit(node, after=True)
            case UndoAnswered(node, fault):
                self._write(UndoFinished(node) if fault is None else UndoFailed(node, fault))
            case AnswerMissing():
                self._answer_missing(event)
            case NotWaitedFor(node):
                if self.state.in_flight.get(self.state.graph.by_path.get(node, -1)) is Phase.DO:  # else its answer came first
                    self._write(OutcomeUnknown(node, self._why_unknown(node)))
            case Ordered():
                self._order(event)
            case _:
                assert_never(event)

    def advance(self, offered: AbstractSet[str] | None) -> None:
        """Starts what may start, after all events have been taken."""
        state = self.state
        if state.course is Course.RUNNING:
            for index in self._startable():
                action = state.graph.nodes[index].action
                assert action is not None, "only actions become startable"
                if offered is not None and action.action not in offered:
                    continue
                if not self._may_start():
                    break
                if (self._path(index), False) in state.controls.breakpoints:
                    self._hit(self._path(index), after=False)
                    if not self._may_start():
                        break
                self._write(Started(self._path(index)))
                self._dispatch(index)
            if state.marks[state.graph.final] is Mark.SUCCEEDED:
                self._write(Done(Outcome.DONE))
        elif state.course is Course.UNWINDING:
            if self.was_running:
                self._hurry()
            for index in sorted(state.undoable):
                if not self._may_start():
                    break
                self._write(UndoStarted(self._path(index)))
                self._dispatch(index)
            if state.unwound:
                self._write(Done(Outcome.UNDONE))

    def _startable(self) -> list[int]:
        """In order, but what will pause the saga comes first: the others are then not started, only to be withheld."""
        controls = self.state.controls
        if controls.paused or not controls.breakpoints:
            return sorted(self.state.startable)
        return sorted(self.state.startable, key=lambda index: ((self._path(index), False) not in controls.breakpoints, index))

    def _hit(self, node: NodePath, *, after: bool) -> None:
        self._write(BreakpointHit(node, after))
        self._withhold()

    def _withhold(self) -> None:
        state = self.state
        self.effects.extend(Withhold(index) for index in sorted(state.in_flight) if not state.controls.may_dispatch(index))

    def _may_start(self) -> bool:
        controls = self.state.controls
        return controls.has_room(len(self.state.in_flight)) and (not controls.paused or controls.steps > 0)

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
                for index in sorted(state.in_flight):
                    self._dispatch(index)
            case RetryUndo(node):
                self._write(UndoStarted(node))
                self._dispatch(state.graph.index_of(node))
            case SkipUndo(node, reason):
                self._write(UndoSkipped(node, reason))
            case MarkUndone(node):
                self._write(UndoFinished(node))
            case Abort() | Step() | SetBreakpoint() | SetMaxInFlight() | InjectError() | InjectRepeat():
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
        if event.phase is Phase.DO and state.course is not Course.RUNNING:
            self._write(OutcomeUnknown(event.node, event.error))
            return
        call = next_call(self._policy(index, event.phase), attempt, event.spent_s, event.draw)
        if call is not None:
            self._dispatch(index, call)
        elif event.phase is Phase.DO:
            self._write(OutcomeUnknown(event.node, event.error))
        else:
            self._write(UndoFailed(event.node, event.error))

    def wanted_effects(self) -> list[Effect]:
        """The effects without what a later event of the same batch has overtaken: it answered the node, dispatched it anew, or paused the saga."""
        state = self.state
        latest = {e.node: e for e in self.effects if isinstance(e, Dispatch) and state.controls.may_dispatch(e.node)}
        return [e for e in self.effects if e.node in state.in_flight and (not isinstance(e, Dispatch) or latest.get(e.node) is e)]

    def _why_unknown(self, node: NodePath) -> Fault:
        tries = self.state.tries.get(self.state.graph.by_path.get(node, -1), NO_TRIES)
        return _NEVER_CALLED if tries.last is None else tries.last.error

    def _hurry(self) -> None:
        self.effects.extend(Hurry(index) for index, phase in sorted(self.state.in_flight.items()) if phase is Phase.DO)

    def _dispatch(self, index: int, call: NextCall | None = None) -> None:
        """Dispatches the node's next attempt; at once, unless the policy said otherwise."""
        controls = self.state.controls
        if not controls.may_dispatch(index):
            return
        phase = self.state.in_flight[index]
        tries = self.state.tries.get(index, NO_TRIES)
        if call is None:
            policy = self._policy(index, phase)
            # Where no call is left by the policy, a takeover still makes one: only an answer can tell what the last one did.
            call = next_call(policy, 0, tries.spent_s, 0.0) or NextCall(0.0, policy.attempt_timeout_s)
        key = (self._path(index), phase)
        self.effects.append(
            Dispatch(
                index,
                phase,
                tries.count + 1,
                call.delay_s,
                call.timeout_s,
                tries.spent_s,
                injected_error=key in controls.errors,
                repeats=controls.repeats.get(key, 1),
            )
        )

    def _policy(self, index: int, phase: Phase) -> RetryPolicy:
        action = self.state.graph.nodes[index].action
        assert action is not None, "only actions are dispatched"
        return action.retry if phase is Phase.DO else action.undo_retry

    def _path(self, index: int) -> NodePath:
        return NodePath(self.state.graph.nodes[index].path)
