"""What a person is shown of a saga's nodes. Derived from the state, which the log implies; nothing here is kept."""

from collections.abc import Iterator
from enum import Enum
from typing import assert_never

from sec_model.graph import GraphNode, NodeKind

from sec.core.state import SagaState
from sec.core.transitions import Course, Mark


class NodeState(Enum):
    """The states that status output knows. A node that failed and one that was unwound look different."""

    BLOCKED = "blocked"
    QUEUED = "queued"
    WORKING = "working"
    RETRYING = "retrying"
    DONE = "done"
    FAILED = "failed"
    OUTCOME_UNKNOWN = "outcome-unknown"
    UNDO_QUEUED = "undo-queued"
    UNDOING = "undoing"
    ABANDONED = "abandoned"
    UNDONE = "undone"
    UNDO_FAILED = "undo-failed"
    UNDO_SKIPPED = "undo-skipped"
    WAITING = "waiting"


def node_state(state: SagaState, index: int) -> NodeState:
    """The state of a node. A subsaga's is that of its nodes taken together."""
    node = state.graph.nodes[index]
    backward = state.course in (Course.UNWINDING, Course.STUCK, Course.UNDONE)
    if node.kind is NodeKind.SUBSAGA_END:
        return _subsaga_state(state, node, backward)
    match state.marks[index]:
        case Mark.NEVER_STARTED:
            if backward:
                return NodeState.ABANDONED
            ready = all(state.marks[p] is Mark.SUCCEEDED for p in node.parents)
            return NodeState.QUEUED if ready else NodeState.BLOCKED
        case Mark.STARTED if node.waits:
            return NodeState.WAITING
        case Mark.STARTED:
            return NodeState.RETRYING if index in state.tries else NodeState.WORKING
        case Mark.GIVEN_UP:
            return NodeState.ABANDONED
        case Mark.SUCCEEDED:
            return NodeState.UNDO_QUEUED if backward else NodeState.DONE
        case Mark.FAILED:
            return NodeState.FAILED
        case Mark.OUTCOME_UNKNOWN:
            return NodeState.OUTCOME_UNKNOWN
        case Mark.UNDO_STARTED:
            return NodeState.UNDOING
        case Mark.UNDO_FINISHED:
            return NodeState.UNDONE
        case Mark.UNDO_FAILED:
            return NodeState.UNDO_FAILED
        case Mark.UNDO_SKIPPED:
            return NodeState.UNDO_SKIPPED
        case mark:
            assert_never(mark)


def _subsaga_state(state: SagaState, end: GraphNode, backward: bool) -> NodeState:
    nodes = state.graph.nodes
    start = nodes[end.index + 1]
    assert start.kind is NodeKind.SUBSAGA_START, "a subsaga's start is numbered right behind its end (see sec_model.graph)"
    if state.marks[start.index] is Mark.NEVER_STARTED:
        if backward:
            return NodeState.ABANDONED
        ready = all(state.marks[p] is Mark.SUCCEEDED for p in start.parents)
        return NodeState.QUEUED if ready else NodeState.BLOCKED
    if not backward:
        return NodeState.DONE if state.marks[end.index] is Mark.SUCCEEDED else NodeState.WORKING
    inner = {state.marks[i] for i in _inside(state, start)}
    if Mark.UNDO_FAILED in inner:
        return NodeState.UNDO_FAILED
    if inner & {Mark.STARTED, Mark.OUTCOME_UNKNOWN, Mark.UNDO_STARTED}:
        return NodeState.UNDOING
    if state.marks[start.index] is not Mark.UNDO_FINISHED:
        return NodeState.UNDO_QUEUED if state.marks[end.index] is Mark.SUCCEEDED else NodeState.UNDOING
    if Mark.UNDO_SKIPPED in inner:
        return NodeState.UNDO_SKIPPED
    return NodeState.FAILED if Mark.FAILED in inner else NodeState.UNDONE


def _inside(state: SagaState, start: GraphNode) -> Iterator[int]:
    """The nodes of a subsaga, which are numbered right behind its start."""
    for node in state.graph.nodes[start.index + 1 :]:
        if not node.path.startswith(start.path):
            return
        yield node.index
