"""Which commands make no sense as a saga stands. Asked when a command is given and once more when its owner takes it up.

`apply` does not ask: a log is taken as it is, so that a rule here may change without making an old saga unreadable.
"""

from typing import assert_never

from sec_model import OnDeadline
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
    SetDeadline,
    SetMaxInFlight,
    Signal,
    SkipUndo,
    Step,
)
from sec_model.graph import GraphNode, NodeKind

from sec.core.state import SagaState
from sec.core.transitions import Course, Mark

MAX_REPEATS = 100
_FORWARD = (Course.CREATED, Course.RUNNING)


def refusal(state: SagaState, command: Command) -> str:
    """Why a command makes no sense as the saga stands, as a sentence. Empty: it does.

    A saga that has not been started takes commands too: they are taken up before its first node starts.
    """
    saga = f'Saga "{state.saga_id}"'
    if state.course is Course.NONEXISTENT or state.course.ended:
        return f"{saga} is {state.course.value}: it takes no commands any more."
    match command:
        case Pause():
            return f"{saga} is paused already." if state.controls.paused else ""
        case Resume():
            return "" if state.controls.paused else f"{saga} is not paused."
        case Abort():
            return _past_return(state) if state.course in _FORWARD else f"{saga} unwinds already."
        case Step():
            return "" if state.controls.paused else f'{saga} is not paused: pause it before you step ("secctl saga pause").'
        case SetMaxInFlight(limit):
            return "" if limit >= 0 else f"{saga} cannot have a limit of {limit}."
        case SetBreakpoint(node, after, clear):
            return _no_place(state, node) or ("" if clear else _is_past_point(state, node, after))
        case InjectError(node, phase) | InjectRepeat(node, phase):
            if isinstance(command, InjectRepeat) and not 1 <= command.count <= MAX_REPEATS:
                return f"A call can be made 1 to {MAX_REPEATS} times, not {command.count}."
            return _no_action(state, node) or _is_never_called(state, node, phase) or _is_past(state, node, phase)
        case RetryUndo(node) | SkipUndo(node) | MarkUndone(node):
            return _about_a_failed_undo(state, command, node)
        case Signal(node):
            return _no_signal(state, node)
        case SetDeadline(node, then, due_us):
            return _no_deadline(state, node, gives_up=due_us > 0 and then is OnDeadline.FAIL)
        case _:
            assert_never(command)


def _about_a_failed_undo(state: SagaState, command: RetryUndo | SkipUndo | MarkUndone, node: NodePath) -> str:
    if isinstance(command, SkipUndo | MarkUndone) and not command.reason.strip():
        return f'Say why: a reason is kept with node "{node}" of saga "{state.saga_id}".'
    missing = _no_action(state, node)
    if missing:
        return missing
    if isinstance(command, RetryUndo) and not _node(state, node).has_undo_action:
        return (
            f'Node "{node}" of saga "{state.saga_id}" has no undo action that could be called: take its effect back by hand, and say so '
            f'("secctl saga mark-undone").'
        )
    return "" if _mark(state, node) is Mark.UNDO_FAILED else f'The undo of node "{node}" of saga "{state.saga_id}" has not failed.'


def _no_signal(state: SagaState, node: NodePath) -> str:
    missing = _no_place(state, node)
    if missing:
        return missing
    if _node(state, node).kind is not NodeKind.SIGNAL:
        return f'Node "{node}" of saga "{state.saga_id}" does not wait for a signal.'
    if state.graph.by_path[node] in state.signals:
        return f'Node "{node}" of saga "{state.saga_id}" has got its signal already.'
    if state.course not in _FORWARD or _mark(state, node) not in (Mark.NEVER_STARTED, Mark.STARTED):
        return f'Node "{node}" of saga "{state.saga_id}" does not wait for its signal any more.'
    return ""


def _no_deadline(state: SagaState, node: NodePath, *, gives_up: bool) -> str:
    if state.course not in _FORWARD:
        return f'Saga "{state.saga_id}" unwinds: deadlines are for going forward.'
    if not node:
        return _past_return(state) if gives_up else ""
    missing = _no_place(state, node)
    if missing:
        return missing
    if _node(state, node).kind is NodeKind.TIMER:
        return f'Node "{node}" of saga "{state.saga_id}" is a timer, which ends by itself.'
    if _mark(state, node) not in (Mark.NEVER_STARTED, Mark.STARTED):
        return f'Node "{node}" of saga "{state.saga_id}" has ended.'
    if gives_up and _node(state, node).never_given_up:
        return f'Node "{node}" of saga "{state.saga_id}" cannot be given up: let its deadline pause the saga.'
    return ""


def _past_return(state: SagaState) -> str:
    point = state.point_passed
    if point is None:
        return ""
    return (
        f'Saga "{state.saga_id}" has come to its point of no return, node "{state.graph.nodes[point].path}": it only goes forward.'
    )


def _node(state: SagaState, node: NodePath) -> GraphNode:
    return state.graph.nodes[state.graph.by_path[node]]


def _mark(state: SagaState, node: NodePath) -> Mark:
    return state.marks[state.graph.by_path[node]]


def _no_place(state: SagaState, node: NodePath) -> str:
    """It is no node at which a saga could stop."""
    if node not in state.graph.by_path:
        return f'Saga "{state.saga_id}" has no node "{node}".'
    return f'Node "{node}" of saga "{state.saga_id}" calls no action.' if _node(state, node).instant else ""


def _no_action(state: SagaState, node: NodePath) -> str:
    missing = _no_place(state, node)
    if missing or _node(state, node).action is not None:
        return missing
    return f'Node "{node}" of saga "{state.saga_id}" calls no action.'


def _is_past_point(state: SagaState, node: NodePath, after: bool) -> str:
    ahead = (Mark.NEVER_STARTED, Mark.STARTED) if after else (Mark.NEVER_STARTED,)
    if state.course in _FORWARD and _mark(state, node) in ahead:
        return ""
    return f'Node "{node}" of saga "{state.saga_id}" is past that point.'


def _is_never_called(state: SagaState, node: NodePath, phase: Phase) -> str:
    if phase is Phase.DO or _node(state, node).has_undo_action:
        return ""
    return f'Node "{node}" of saga "{state.saga_id}" has no undo action.'


def _is_past(state: SagaState, node: NodePath, phase: Phase) -> str:
    mark = _mark(state, node)
    if phase is Phase.DO:
        past = mark is not Mark.NEVER_STARTED or state.course not in _FORWARD
    else:
        ahead = (Mark.STARTED, Mark.SUCCEEDED, Mark.OUTCOME_UNKNOWN, Mark.UNDO_FAILED)
        past = mark not in ahead and not (mark is Mark.NEVER_STARTED and state.course in _FORWARD)
    return f'The {phase.value} of node "{node}" of saga "{state.saga_id}" is past.' if past else ""
