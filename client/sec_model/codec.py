"""Definitions and payloads as messages of the contract, and the hash under which a definition is stored."""

import hashlib

from sec_protos.v1 import common_pb2, definition_pb2

from sec_model.definition import (
    DEFAULT_RETRY,
    DEFAULT_UNDO_RETRY,
    ActionNode,
    ConstantNode,
    Deadline,
    Definition,
    DefinitionError,
    Input,
    Kind,
    Node,
    OnDeadline,
    Payload,
    RetryPolicy,
    SignalNode,
    SubsagaNode,
    TimerNode,
    UndoPolicy,
)

_UNDO_TO_PROTO = {
    UndoPolicy.ACTION: definition_pb2.UNDO_POLICY_UNSPECIFIED,
    UndoPolicy.NONE_NEEDED: definition_pb2.UNDO_POLICY_NONE_NEEDED,
    UndoPolicy.CONFIRM: definition_pb2.UNDO_POLICY_CONFIRM,
    UndoPolicy.MANUAL: definition_pb2.UNDO_POLICY_MANUAL,
    UndoPolicy.POINT_OF_NO_RETURN: definition_pb2.UNDO_POLICY_POINT_OF_NO_RETURN,
}
_UNDO_FROM_PROTO = {number: policy for policy, number in _UNDO_TO_PROTO.items()} | {
    definition_pb2.UNDO_POLICY_ACTION: UndoPolicy.ACTION
}
ON_DEADLINE_TO_PROTO = {OnDeadline.FAIL: definition_pb2.ON_DEADLINE_FAIL, OnDeadline.PAUSE: definition_pb2.ON_DEADLINE_PAUSE}
ON_DEADLINE_FROM_PROTO = {number: then for then, number in ON_DEADLINE_TO_PROTO.items()} | {
    definition_pb2.ON_DEADLINE_UNSPECIFIED: OnDeadline.FAIL
}


def payload_to_proto(payload: Payload) -> common_pb2.Payload:
    return common_pb2.Payload(content_type=payload.content_type, data=payload.data)


def payload_from_proto(message: common_pb2.Payload) -> Payload:
    return Payload(message.content_type, message.data)


def deadline_to_proto(deadline: Deadline | None) -> definition_pb2.Deadline | None:
    if deadline is None:
        return None
    return definition_pb2.Deadline(after_s=deadline.after_s, then=ON_DEADLINE_TO_PROTO[deadline.then])


def deadline_from_proto(message: definition_pb2.Deadline) -> Deadline:
    """Raises `ValueError` when this version does not know what is to happen then."""
    if message.then not in ON_DEADLINE_FROM_PROTO:
        raise ValueError(f"A deadline has the unknown consequence {message.then}.")
    return Deadline(message.after_s, ON_DEADLINE_FROM_PROTO[message.then])


def definition_to_proto(definition: Definition) -> definition_pb2.SagaDefinition:
    return definition_pb2.SagaDefinition(name=definition.name, nodes=[_node_to_proto(n) for n in definition.nodes])


def definition_from_proto(message: definition_pb2.SagaDefinition) -> Definition:
    """Reads a definition; its checks stand in `sec_model.graph`. Raises `DefinitionError` for a node that is of no kind."""
    problems: list[str] = []
    definition = _definition_from_proto(message, "", problems)
    if problems:
        raise DefinitionError(tuple(problems))
    return definition


def definition_bytes(definition: Definition) -> bytes:
    """The canonical bytes of a definition: equal definitions have equal bytes.

    A retry policy that is the default is left out: the contract fixes its numbers, and sagas in stores count on them.
    """
    return definition_to_proto(definition).SerializeToString(deterministic=True)


def definition_hash(data: bytes) -> str:
    """Hex SHA-256 of a definition's canonical bytes."""
    return hashlib.sha256(data).hexdigest()


def _node_to_proto(node: Node) -> definition_pb2.NodeDefinition:
    message = definition_pb2.NodeDefinition(
        name=node.name,
        label=node.label,
        depends_on=node.depends_on,
        inputs=[definition_pb2.NodeInput(name=i.name, node=i.node) for i in node.inputs],
    )
    match node.kind:
        case ActionNode(action, retry, undo_retry, undo, deadline):
            message.action.CopyFrom(
                definition_pb2.ActionNode(
                    action=action,
                    retry=_retry_to_proto(retry, DEFAULT_RETRY),
                    undo_retry=_retry_to_proto(undo_retry, DEFAULT_UNDO_RETRY),
                    undo=_UNDO_TO_PROTO[undo],
                    deadline=deadline_to_proto(deadline),
                )
            )
        case SignalNode(deadline):
            message.signal.CopyFrom(definition_pb2.SignalNode(deadline=deadline_to_proto(deadline)))
        case TimerNode(after_s, until_us):
            timer = definition_pb2.TimerNode(until_us=until_us) if until_us else definition_pb2.TimerNode(after_s=after_s)
            message.timer.CopyFrom(timer)
        case ConstantNode(value):
            message.constant.CopyFrom(definition_pb2.ConstantNode(value=payload_to_proto(value)))
        case SubsagaNode(saga, params_from):
            message.subsaga.CopyFrom(definition_pb2.SubsagaNode(saga=definition_to_proto(saga), params_from=params_from))
    return message


def _definition_from_proto(message: definition_pb2.SagaDefinition, prefix: str, problems: list[str]) -> Definition:
    return Definition(message.name, tuple(_node_from_proto(n, prefix, problems) for n in message.nodes))


def _node_from_proto(message: definition_pb2.NodeDefinition, prefix: str, problems: list[str]) -> Node:
    path = prefix + message.name
    kind: Kind
    match message.WhichOneof("kind"):
        case "action":
            action = message.action
            kind = ActionNode(
                action.action,
                _retry_from_proto(action.retry, DEFAULT_RETRY),
                _retry_from_proto(action.undo_retry, DEFAULT_UNDO_RETRY),
                _undo_from_proto(action.undo, path, problems),
                _deadline_of(action, path, problems),
            )
        case "signal":
            kind = SignalNode(_deadline_of(message.signal, path, problems))
        case "timer":
            kind = TimerNode(message.timer.after_s, message.timer.until_us)
        case "constant":
            kind = ConstantNode(payload_from_proto(message.constant.value))
        case "subsaga":
            kind = SubsagaNode(_definition_from_proto(message.subsaga.saga, f"{path}/", problems), message.subsaga.params_from)
        case _:
            problems.append(f'Node "{path}" is of no kind that this version knows: action, constant, signal, timer, subsaga.')
            kind = ConstantNode(Payload())
    inputs = tuple(Input(i.name or i.node, i.node) for i in message.inputs)
    return Node(message.name, kind, tuple(message.depends_on), inputs, message.label)


def _undo_from_proto(number: int, path: str, problems: list[str]) -> UndoPolicy:
    if number not in _UNDO_FROM_PROTO:
        problems.append(f'Node "{path}" has the unknown undo policy {number}.')
        return UndoPolicy.ACTION
    return _UNDO_FROM_PROTO[number]  # type: ignore[index] # the stubs tell enum values from numbers


def _deadline_of(message: definition_pb2.ActionNode | definition_pb2.SignalNode, path: str, problems: list[str]) -> Deadline | None:
    if not message.HasField("deadline"):
        return None
    try:
        return deadline_from_proto(message.deadline)
    except ValueError as error:
        problems.append(f'Node "{path}": {error}')
        return None


def _retry_to_proto(policy: RetryPolicy, default: RetryPolicy) -> common_pb2.RetryPolicy | None:
    if policy == default:
        return None
    return common_pb2.RetryPolicy(
        max_attempts=policy.max_attempts,
        initial_backoff_s=policy.initial_backoff_s,
        max_backoff_s=policy.max_backoff_s,
        multiplier=policy.multiplier,
        jitter=policy.jitter,
        attempt_timeout_s=policy.attempt_timeout_s,
        overall_timeout_s=policy.overall_timeout_s or 0.0,
        heartbeat_timeout_s=policy.heartbeat_timeout_s or 0.0,
    )


def _retry_from_proto(message: common_pb2.RetryPolicy, default: RetryPolicy) -> RetryPolicy:
    return RetryPolicy(
        max_attempts=message.max_attempts or default.max_attempts,
        initial_backoff_s=message.initial_backoff_s or default.initial_backoff_s,
        max_backoff_s=message.max_backoff_s or default.max_backoff_s,
        multiplier=message.multiplier or default.multiplier,
        jitter=message.jitter if message.HasField("jitter") else default.jitter,
        attempt_timeout_s=message.attempt_timeout_s or default.attempt_timeout_s,
        overall_timeout_s=message.overall_timeout_s or default.overall_timeout_s,
        heartbeat_timeout_s=message.heartbeat_timeout_s or default.heartbeat_timeout_s,
    )
