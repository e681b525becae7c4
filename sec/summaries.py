"""What lists show of a saga: built by its owner when the saga changes course, and by whoever reads its log."""

from collections.abc import Mapping

from sec_model.commands_codec import PHASE_TO_PROTO
from sec_protos.v1 import coordinator_pb2

from sec.codec import fault_to_proto
from sec.core.controls import Controls
from sec.core.records import Phase
from sec.core.state import Mishap
from sec.core.transitions import Course
from sec.store.sagas import SagaHead

Summary = coordinator_pb2.SagaSummary

STATE_OF_COURSE = {
    Course.NONEXISTENT: coordinator_pb2.SAGA_STATE_UNSPECIFIED,
    Course.CREATED: coordinator_pb2.SAGA_STATE_CREATED,
    Course.RUNNING: coordinator_pb2.SAGA_STATE_RUNNING,
    Course.UNWINDING: coordinator_pb2.SAGA_STATE_UNWINDING,
    Course.STUCK: coordinator_pb2.SAGA_STATE_STUCK,
    Course.DONE: coordinator_pb2.SAGA_STATE_DONE,
    Course.UNDONE: coordinator_pb2.SAGA_STATE_UNDONE,
}


def summary_of(
    head: SagaHead,
    course: Course,
    mishaps: tuple[Mishap, ...],
    *,
    controls: Controls | None = None,
    now_us: int = 0,
    times_us: Mapping[int, int] | None = None,
) -> Summary:
    """The summary of a saga. `now_us` becomes the time of its end, if it has ended, and of mishaps whose time `times_us` (by sequence
    number) does not tell."""
    # Field by field: every saga comes by here twice, and a message made from arguments takes five times as long.
    summary = Summary()
    summary.saga_id, summary.name, summary.definition_hash = head.saga_id, head.name, head.definition_hash
    summary.state, summary.created_us = STATE_OF_COURSE[course], head.created_us
    if head.labels:
        summary.labels.update(head.labels)
    if course.ended:
        summary.ended_us = now_us
    elif controls is not None:
        summary.paused, summary.pause_reason = controls.paused, controls.pause_reason
    mishap = _foremost(course, mishaps)
    if mishap is not None:
        summary.error.CopyFrom(node_error(mishap, (times_us or {}).get(mishap.sequence, now_us)))
    return summary


def unreadable_summary(head: SagaHead, reason: str, now_us: int) -> Summary:
    """The summary of a saga whose log cannot be read."""
    summary = Summary(saga_id=head.saga_id, name=head.name, labels=head.labels, created_us=head.created_us)
    summary.definition_hash = head.definition_hash
    summary.state = coordinator_pb2.SAGA_STATE_CORRUPT
    summary.error.error.message = reason
    summary.error.time_us = now_us
    return summary


def node_error(mishap: Mishap, time_us: int) -> coordinator_pb2.NodeError:
    return coordinator_pb2.NodeError(
        node=mishap.node, phase=PHASE_TO_PROTO[mishap.phase], error=fault_to_proto(mishap.error), time_us=time_us
    )


def _foremost(course: Course, mishaps: tuple[Mishap, ...]) -> Mishap | None:
    """Why it is stuck, while it is; otherwise what went wrong first."""
    if course is Course.STUCK:
        return next(m for m in reversed(mishaps) if m.phase is Phase.UNDO)
    return mishaps[0] if mishaps else None
