"""Definitions and payloads as messages of the contract, and the hash under which a definition is stored."""

import hashlib

from sec_protos.v1 import common_pb2, definition_pb2

from sec_model.definition import (
    DEFAULT_RETRY,
    DEFAULT_UNDO_RETRY,
    ActionNode,
    ConstantNode,
    Definition,
    DefinitionError,
    Input,
    Node,
    Payload,
    RetryPolicy,
    SubsagaNode,
)


def payload_to_proto(payload: Payload) -> common_pb2.Payload:
    return common_pb2.Payload(content_type=payload.content_type, data=payload.data)


def payload_from_proto(message: common_pb2.Payload) -> Payload:
    return Payload(message.content_type, message.data)


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
        case ActionNode(action, retry, undo_retry):
            message.action.CopyFrom(
                definition_pb2.ActionNode(
                    action=action,
                    retry=_retry_to_proto(retry, DEFAULT_RETRY),
                    undo_retry=_retry_to_proto(undo_retry, DEFAULT_UNDO_RETRY),
                )
            )
        case ConstantNode(value):
            message.constant.CopyFrom(definition_pb2.ConstantNode(value=payload_to_proto(value)))
        case SubsagaNode(saga, params_from):
            message.subsaga.CopyFrom(definition_pb2.SubsagaNode(saga=definition_to_proto(saga), params_from=params_from))
    return message


def _definition_from_proto(message: definition_pb2.SagaDefinition, prefix: str, problems: list[str]) -> Definition:
    return Definition(message.name, tuple(_node_from_proto(n, prefix, problems) for n in message.nodes))


def _node_from_proto(message: definition_pb2.NodeDefinition, prefix: str, problems: list[str]) -> Node:
    path = prefix + message.name
    kind: ActionNode | ConstantNode | SubsagaNode
    match message.WhichOneof("kind"):
        case "action":
            action = message.action
            kind = ActionNode(
                action.action,
                _retry_from_proto(action.retry, DEFAULT_RETRY),
                _retry_from_proto(action.undo_retry, DEFAULT_UNDO_RETRY),
            )
        case "constant":
            kind = ConstantNode(payload_from_proto(message.constant.value))
        case "subsaga":
            kind = SubsagaNode(_definition_from_proto(message.subsaga.saga, f"{path}/", problems), message.subsaga.params_from)
        case _:
            problems.append(f'Node "{path}" is neither an action nor a constant nor a subsaga.')
            kind = ConstantNode(Payload())
    inputs = tuple(Input(i.name or i.node, i.node) for i in message.inputs)
    return Node(message.name, kind, tuple(message.depends_on), inputs, message.label)


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
    )
