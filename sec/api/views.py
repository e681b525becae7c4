"""Sagas as clients see them, made from what the store has. Nothing is remembered between calls, but for what actions report."""

from collections.abc import Mapping

from sec_model.codec import payload_to_proto
from sec_model.graph import GraphNode, NodeKind
from sec_model.versions import has_version
from sec_protos.v1 import coordinator_pb2

from sec.codec import record_to_proto
from sec.core.records import LogEntry, NodePath, Phase
from sec.core.state import NO_TRIES, SagaState
from sec.core.status import NodeState, node_state
from sec.core.transitions import Course, Mark
from sec.node.reports import Timed, progress_to_proto
from sec.store.sagas import StoredSaga
from sec.summaries import node_error, summary_of, unreadable_summary

_STATE_TO_PROTO = {state: coordinator_pb2.NodeState.Value("NODE_STATE_" + state.name) for state in NodeState}

_CALLED = {_STATE_TO_PROTO[state] for state in (NodeState.WORKING, NodeState.RETRYING, NodeState.UNDOING)}


def saga_view(
    stored: StoredSaga, state: SagaState, offered: frozenset[str] | None, reports: Mapping[NodePath, Timed], *, omit_outputs: bool
) -> coordinator_pb2.Saga:
    """A saga with its nodes. `reports`: what calls under way have said of how far they are."""
    view = _bare_view(stored)
    view.summary.CopyFrom(stored_summary(stored, state))
    view.epoch = state.epoch
    view.errors.extend(node_errors(stored, state))
    times_us = _times_us(stored)
    shown = [node for node in state.graph.nodes if node.kind is not NodeKind.SUBSAGA_START]
    view.nodes.extend(_node_status(state, node, times_us, offered, omit_outputs) for node in shown)
    if reports:
        for status in view.nodes:
            if status.state in _CALLED and (timed := reports.get(NodePath(status.node))) is not None:
                status.progress.CopyFrom(progress_to_proto(timed))
    if state.course is Course.DONE:
        view.output.CopyFrom(payload_to_proto(state.output_of(state.graph.final)))
    due = state.dues.get(NodePath(""))
    if due is not None and state.course is Course.RUNNING:
        view.due_us = due.us
    return view


def corrupt_view(stored: StoredSaga, reason: str) -> coordinator_pb2.Saga:
    """A saga whose log cannot be folded: without nodes, but with the reason."""
    view = _bare_view(stored)
    view.summary.CopyFrom(unreadable_summary(stored.head, reason, 0))
    view.summary.owner = stored.owner
    return view


def _bare_view(stored: StoredSaga) -> coordinator_pb2.Saga:
    head = stored.head
    return coordinator_pb2.Saga(
        uid=head.uid,
        definition_hash=head.definition_hash,
        params=payload_to_proto(head.params),
        next_sequence=len(stored.entries) + 1,
    )


def stored_summary(stored: StoredSaga, state: SagaState) -> coordinator_pb2.SagaSummary:
    """The summary of a saga as its log stands."""
    ended_us = stored.entries[-1].time_us if stored.entries else 0
    summary = summary_of(
        stored.head, state.course, state.mishaps, controls=state.controls, now_us=ended_us, times_us=_times_us(stored)
    )
    summary.owner = stored.owner
    return summary


def node_errors(stored: StoredSaga, state: SagaState) -> list[coordinator_pb2.NodeError]:
    """All that went wrong, in the order of the log."""
    times_us = _times_us(stored)
    return [node_error(m, times_us[m.sequence]) for m in state.mishaps]


def _times_us(stored: StoredSaga) -> dict[int, int]:
    return {entry.sequence: entry.time_us for entry in stored.entries}


def sequenced(entry: LogEntry) -> coordinator_pb2.SequencedRecord:
    """A record as the contract shows it."""
    return coordinator_pb2.SequencedRecord(
        sequence=entry.sequence, epoch=entry.epoch, writer=entry.writer, time_us=entry.time_us, record=record_to_proto(entry.record)
    )


def _node_status(
    state: SagaState, node: GraphNode, times_us: Mapping[int, int], offered: frozenset[str] | None, omit_outputs: bool
) -> coordinator_pb2.NodeStatus:
    graph = state.graph
    shown_state = node_state(state, node.index)
    parents = graph.nodes[node.index + 1].parents if node.kind is NodeKind.SUBSAGA_END else node.parents
    status = coordinator_pb2.NodeStatus(
        node=node.path,
        label=node.label,
        state=_STATE_TO_PROTO[shown_state],
        depends_on=[graph.nodes[p].path for p in parents if graph.nodes[p].kind is not NodeKind.SUBSAGA_START],
        action="" if node.action is None else state.pins.get(node.action.action, node.action.action),
        attempts=state.tries.get(node.index, NO_TRIES).count,
        detail=_detail(state, node, shown_state, offered),
        subsaga=node.kind is NodeKind.SUBSAGA_END,
        rank=node.rank,
    )
    tries = state.tries.get(node.index, NO_TRIES)
    mishap = tries.last or next((m for m in reversed(state.mishaps) if m.node == node.path), None)
    if mishap is not None:
        status.error.CopyFrom(node_error(mishap, times_us[mishap.sequence]))
    due = state.dues.get(node.path)
    if due is not None:
        status.due_us = due.us
    if not omit_outputs and _has_output(state, node):
        status.output.CopyFrom(payload_to_proto(state.output_of(node.index)))
    return status


def _has_output(state: SagaState, node: GraphNode) -> bool:
    """It has succeeded, be it undone since."""
    while node.output_of is not None:
        node = state.graph.nodes[node.output_of]
    return node.index in state.outputs or (node.constant is not None and state.marks[node.index] is not Mark.NEVER_STARTED)


def _not_offered(asked: str, pinned: str | None) -> str:
    nobody = f'No action server that can be reached offers "{pinned or asked}"'
    if pinned is None or not has_version(pinned):
        return f"{nobody}."
    return f'{nobody}, to which the saga is pinned since it asked for "{asked}". Start an action server that does.'


def _detail(state: SagaState, node: GraphNode, shown: NodeState, offered: frozenset[str] | None) -> str:
    """What the node waits for, as far as the SEC node that answers can see."""
    if shown is NodeState.WAITING:
        return 'Waits for its signal ("secctl saga signal").' if node.kind is NodeKind.SIGNAL else "Waits for its time."
    if node.action is None:
        return ""
    waits = shown in (NodeState.QUEUED, NodeState.WORKING, NodeState.RETRYING, NodeState.UNDOING)
    if waits and state.course is not Course.CREATED and state.offer_of(node.action.action, offered) is None:
        return _not_offered(node.action.action, state.pins.get(node.action.action))
    tries = state.tries.get(node.index)
    if tries is not None:
        phase = state.in_flight.get(node.index, Phase.DO)
        policy = node.action.retry if phase is Phase.DO else node.action.undo_retry
        if phase is Phase.DO and node.never_given_up:
            return f"Call {tries.count + 1} comes next or is under way; the saga only goes forward from here, so that it is tried for ever."
        return f"Call {tries.count + 1} of {policy.max_attempts} comes next or is under way."
    return ""
