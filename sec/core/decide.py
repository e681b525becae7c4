"""`decide`: what follows from an event. It changes nothing and does nothing: it answers the records to write and the effects to run.

The driver's one rule, in this order: make the records durable, apply them, run the effects. An event that does not fit the state raises
`IllegalTransition`.
"""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import assert_never

from sec_model import Payload, RetryPolicy

from sec.core.records import (
    AttemptUnknown,
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
class RetryUndo:
    """An operator wants a failed undo tried again, under a fresh retry policy."""

    node: NodePath


@dataclass(frozen=True, slots=True)
class SkipUndo:
    """An operator gives up a failed undo, with a reason."""

    node: NodePath
    reason: str


Event = Begin | TakenOver | DoAnswered | UndoAnswered | AnswerMissing | NotWaitedFor | RetryUndo | SkipUndo

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


@dataclass(frozen=True, slots=True)
class Hurry:
    """The saga is unwinding: a do that pauses between two calls, or waits for an action server, is not waited for any longer. Drop it and
    answer `NotWaitedFor` at once. A call under way is left alone."""

    node: int


Effect = Dispatch | Hurry


@dataclass(frozen=True, slots=True)
class Ready:
    """What to write, then what to do. `course` and `mishaps` are those of the saga once the records are applied."""

    records: tuple[Record, ...]
    effects: tuple[Effect, ...]
    course: Course
    mishaps: tuple[Mishap, ...]


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
        return Ready(tuple(draft.records), tuple(draft.wanted_effects()), state.course, state.mishaps)


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
            case UndoAnswered(node, fault):
                self._write(UndoFinished(node) if fault is None else UndoFailed(node, fault))
            case AnswerMissing():
                self._answer_missing(event)
            case NotWaitedFor(node):
                self._write(OutcomeUnknown(node, self._why_unknown(node)))
            case RetryUndo(node):
                self._write(UndoStarted(node))
                self._dispatch(self.state.graph.index_of(node))
            case SkipUndo(node, reason):
                self._write(UndoSkipped(node, reason))
            case _:
                assert_never(event)

    def advance(self, offered: AbstractSet[str] | None) -> None:
        """Starts what may start, after all events have been taken."""
        state = self.state
        if state.course is Course.RUNNING:
            for index in sorted(state.startable):
                action = state.graph.nodes[index].action
                assert action is not None, "only actions become startable"
                if offered is None or action.action in offered:
                    self._write(Started(self._path(index)))
                    self._dispatch(index)
            if state.marks[state.graph.final] is Mark.SUCCEEDED:
                self._write(Done(Outcome.DONE))
        elif state.course is Course.UNWINDING:
            if self.was_running:
                self._hurry()
            for index in sorted(state.undoable):
                self._write(UndoStarted(self._path(index)))
                self._dispatch(index)
            if state.unwound:
                self._write(Done(Outcome.UNDONE))

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
        """The effects without those whose node was answered by a later event of the same batch."""
        return [effect for effect in self.effects if effect.node in self.state.in_flight]

    def _why_unknown(self, node: NodePath) -> Fault:
        tries = self.state.tries.get(self.state.graph.by_path.get(node, -1), NO_TRIES)
        return _NEVER_CALLED if tries.last is None else tries.last.error

    def _hurry(self) -> None:
        self.effects.extend(Hurry(index) for index, phase in sorted(self.state.in_flight.items()) if phase is Phase.DO)

    def _dispatch(self, index: int, call: NextCall | None = None) -> None:
        """Dispatches the node's next attempt; at once, unless the policy said otherwise."""
        phase = self.state.in_flight[index]
        tries = self.state.tries.get(index, NO_TRIES)
        if call is None:
            policy = self._policy(index, phase)
            # Where no call is left by the policy, a takeover still makes one: only an answer can tell what the last one did.
            call = next_call(policy, 0, tries.spent_s, 0.0) or NextCall(0.0, policy.attempt_timeout_s)
        self.effects.append(Dispatch(index, phase, tries.count + 1, call.delay_s, call.timeout_s, tries.spent_s))

    def _policy(self, index: int, phase: Phase) -> RetryPolicy:
        action = self.state.graph.nodes[index].action
        assert action is not None, "only actions are dispatched"
        return action.retry if phase is Phase.DO else action.undo_retry

    def _path(self, index: int) -> NodePath:
        return NodePath(self.state.graph.nodes[index].path)
