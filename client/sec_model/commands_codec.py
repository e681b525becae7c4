"""Commands as messages of the contract, and back."""

from sec_protos.v1 import commands_pb2 as pb
from sec_protos.v1 import common_pb2

from sec_model.codec import ON_DEADLINE_FROM_PROTO, ON_DEADLINE_TO_PROTO, payload_from_proto, payload_to_proto
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

PHASE_TO_PROTO = {Phase.DO: common_pb2.PHASE_DO, Phase.UNDO: common_pb2.PHASE_UNDO}
PHASE_FROM_PROTO = {number: phase for phase, number in PHASE_TO_PROTO.items()}


def command_to_proto(command: Command) -> pb.Command:
    match command:
        case Pause(reason):
            return pb.Command(pause=pb.Pause(reason=reason))
        case Resume():
            return pb.Command(resume=pb.Resume())
        case Abort(reason):
            return pb.Command(abort=pb.Abort(reason=reason))
        case Step():
            return pb.Command(step=pb.Step())
        case SetBreakpoint(node, after, clear):
            return pb.Command(set_breakpoint=pb.SetBreakpoint(node=node, after=after, clear=clear))
        case SetMaxInFlight(limit):
            return pb.Command(set_max_in_flight=pb.SetMaxInFlight(limit=limit))
        case RetryUndo(node):
            return pb.Command(retry_undo=pb.RetryUndo(node=node))
        case SkipUndo(node, reason):
            return pb.Command(skip_undo=pb.SkipUndo(node=node, reason=reason))
        case MarkUndone(node, reason):
            return pb.Command(mark_undone=pb.MarkUndone(node=node, reason=reason))
        case InjectError(node, phase):
            return pb.Command(inject_error=pb.InjectError(node=node, phase=PHASE_TO_PROTO[phase]))
        case InjectRepeat(node, phase, count):
            return pb.Command(inject_repeat=pb.InjectRepeat(node=node, phase=PHASE_TO_PROTO[phase], count=count))
        case Signal(node, data):
            return pb.Command(signal=pb.Signal(node=node, data=payload_to_proto(data)))
        case SetDeadline(node, then, due_us, after_s):
            return pb.Command(
                set_deadline=pb.SetDeadline(node=node, due_us=due_us, after_s=after_s, then=ON_DEADLINE_TO_PROTO[then])
            )


def command_from_proto(message: pb.Command) -> Command:
    """The command of a message. Raises `ValueError` for a kind or a phase that this version does not know."""
    match message.WhichOneof("kind"):
        case "pause":
            return Pause(message.pause.reason)
        case "resume":
            return Resume()
        case "abort":
            return Abort(message.abort.reason)
        case "step":
            return Step()
        case "set_breakpoint":
            breakpoint_ = message.set_breakpoint
            return SetBreakpoint(NodePath(breakpoint_.node), breakpoint_.after, breakpoint_.clear)
        case "set_max_in_flight":
            return SetMaxInFlight(message.set_max_in_flight.limit)
        case "retry_undo":
            return RetryUndo(NodePath(message.retry_undo.node))
        case "skip_undo":
            return SkipUndo(NodePath(message.skip_undo.node), message.skip_undo.reason)
        case "mark_undone":
            return MarkUndone(NodePath(message.mark_undone.node), message.mark_undone.reason)
        case "inject_error":
            return InjectError(NodePath(message.inject_error.node), _phase(message.inject_error.phase))
        case "inject_repeat":
            repeat = message.inject_repeat
            return InjectRepeat(NodePath(repeat.node), _phase(repeat.phase), repeat.count)
        case "signal":
            return Signal(NodePath(message.signal.node), payload_from_proto(message.signal.data))
        case "set_deadline":
            deadline = message.set_deadline
            if deadline.then not in ON_DEADLINE_FROM_PROTO:
                raise ValueError(f"A deadline has the unknown consequence {deadline.then}.")
            then = ON_DEADLINE_FROM_PROTO[deadline.then]
            return SetDeadline(NodePath(deadline.node), then, deadline.due_us, deadline.after_s)
        case _:
            raise ValueError("A command is of a kind that this version does not know.")


def _phase(number: int) -> Phase:
    if number not in PHASE_FROM_PROTO:
        raise ValueError(f"A command has the unknown phase {number}.")
    return PHASE_FROM_PROTO[number]  # type: ignore[index] # the stubs tell enum values from numbers
