"""What operators have set on a saga: pause, steps, breakpoints, limits, injections. A value: each command makes a new one.

Which commands make sense in which state is decided by `refusal`; `sec.core.state` applies what was not refused.
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, assert_never

from sec_model.commands import (
    Abort,
    Command,
    InjectError,
    InjectRepeat,
    MarkUndone,
    NodePath,
    Pause,
    Phase,
    Resume,
    RetryUndo,
    SetBreakpoint,
    SetMaxInFlight,
    SkipUndo,
    Step,
)

from sec.core.transitions import Course, Mark

if TYPE_CHECKING:
    from sec.core.state import SagaState

MAX_REPEATS = 100


@dataclass(frozen=True, slots=True)
class Controls:
    """The settings of one saga. `stepped` are the nodes that a step has started while the saga is paused: they may be dispatched."""

    paused: bool = False
    pause_reason: str = ""
    steps: int = 0
    stepped: frozenset[int] = frozenset()
    breakpoints: frozenset[tuple[NodePath, bool]] = frozenset()
    """Nodes, and whether it stands after them."""
    max_in_flight: int = 0
    errors: frozenset[tuple[NodePath, Phase]] = frozenset()
    repeats: dict[tuple[NodePath, Phase], int] = field(default_factory=dict)

    def may_dispatch(self, index: int) -> bool:
        """Whether a node that is in flight may be called (again) now."""
        return not self.paused or index in self.stepped

    def has_room(self, in_flight: int) -> bool:
        """Whether another node may be started beside so many."""
        return not self.max_in_flight or in_flight < self.max_in_flight

    def ordered(self, command: Command) -> "Controls":
        """The settings after a command that was not refused."""
        match command:
            case Pause(reason):
                return replace(self, paused=True, pause_reason=reason)
            case Resume() | Abort():
                return replace(self, paused=False, pause_reason="", steps=0, stepped=frozenset())
            case Step():
                return replace(self, steps=self.steps + 1)
            case SetBreakpoint(node, after, clear):
                point = frozenset({(node, after)})
                return replace(self, breakpoints=self.breakpoints - point if clear else self.breakpoints | point)
            case SetMaxInFlight(limit):
                return replace(self, max_in_flight=limit)
            case InjectError(node, phase):
                return replace(self, errors=self.errors | {(node, phase)})
            case InjectRepeat(node, phase, count):
                return replace(self, repeats={**self.repeats, (node, phase): count})
            case RetryUndo() | SkipUndo() | MarkUndone():
                return self
            case _:
                assert_never(command)

    def hit(self, node: NodePath, after: bool) -> "Controls":
        """The settings after a breakpoint was reached."""
        where = "after" if after else "before"
        reason = f'Breakpoint {where} node "{node}".'
        return replace(self, paused=True, pause_reason=reason, breakpoints=self.breakpoints - {(node, after)})

    def started(self, index: int) -> "Controls":
        """The settings after a node was started: while the saga is paused, that uses up a step."""
        if not self.paused:
            return self
        return replace(self, steps=self.steps - 1, stepped=self.stepped | {index})

    def exempted(self, index: int) -> "Controls":
        """The settings after an operator had a single node started: a pause does not hold it."""
        return replace(self, stepped=self.stepped | {index}) if self.paused else self

    def settled(self, index: int, node: NodePath, phase: Phase) -> "Controls":
        """The settings after an outcome: what was set for this node and phase has been used up."""
        key = (node, phase)
        if index not in self.stepped and key not in self.errors and key not in self.repeats:
            return self
        repeats = {k: v for k, v in self.repeats.items() if k != key}
        return replace(self, stepped=self.stepped - {index}, errors=self.errors - {key}, repeats=repeats)


def refusal(state: "SagaState", command: Command) -> str:
    """Why a command makes no sense as the saga stands, as a sentence. Empty: it does."""
    saga = f'Saga "{state.saga_id}"'
    if state.course not in (Course.RUNNING, Course.UNWINDING, Course.STUCK):
        return f"{saga} is {state.course.value}: it takes commands while it runs, unwinds or is stuck."
    match command:
        case Pause():
            return f"{saga} is paused already." if state.controls.paused else ""
        case Resume():
            return "" if state.controls.paused else f"{saga} is not paused."
        case Abort():
            return "" if state.course is Course.RUNNING else f"{saga} unwinds already."
        case Step():
            return "" if state.controls.paused else f'{saga} is not paused: pause it before you step ("secctl saga pause").'
        case SetMaxInFlight(limit):
            return "" if limit >= 0 else f"{saga} cannot have a limit of {limit}."
        case SetBreakpoint(node, after, _):
            started = after and _mark(state, node) not in (Mark.NEVER_STARTED, Mark.STARTED, None)
            begun = not after and _mark(state, node) not in (Mark.NEVER_STARTED, None)
            missing = _not_an_action(state, node)
            if missing or (state.course is Course.RUNNING and not started and not begun):
                return missing
            return f'Node "{node}" of saga "{state.saga_id}" is past that point.'
        case InjectError(node, phase) | InjectRepeat(node, phase):
            if isinstance(command, InjectRepeat) and not 1 <= command.count <= MAX_REPEATS:
                return f"A call can be made 1 to {MAX_REPEATS} times, not {command.count}."
            return _not_an_action(state, node) or _is_past(state, node, phase)
        case RetryUndo(node) | SkipUndo(node) | MarkUndone(node):
            if isinstance(command, SkipUndo | MarkUndone) and not command.reason.strip():
                return f'Say why: a reason is kept with node "{node}" of saga "{state.saga_id}".'
            missing = _not_an_action(state, node)
            if missing or _mark(state, node) is Mark.UNDO_FAILED:
                return missing
            return f'The undo of node "{node}" of saga "{state.saga_id}" has not failed.'
        case _:
            assert_never(command)


def _mark(state: "SagaState", node: NodePath) -> Mark | None:
    index = state.graph.by_path.get(node)
    return None if index is None else state.marks[index]


def _not_an_action(state: "SagaState", node: NodePath) -> str:
    index = state.graph.by_path.get(node)
    if index is None:
        return f'Saga "{state.saga_id}" has no node "{node}".'
    return f'Node "{node}" of saga "{state.saga_id}" calls no action.' if state.graph.nodes[index].instant else ""


def _is_past(state: "SagaState", node: NodePath, phase: Phase) -> str:
    mark = _mark(state, node)
    if phase is Phase.DO:
        past = mark is not Mark.NEVER_STARTED or state.course is not Course.RUNNING
    else:
        past = mark not in (Mark.NEVER_STARTED, Mark.STARTED, Mark.SUCCEEDED, Mark.OUTCOME_UNKNOWN, Mark.UNDO_FAILED)
    return f'The {phase.value} of node "{node}" of saga "{state.saga_id}" is past.' if past else ""
