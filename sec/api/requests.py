"""Checks of what comes in, before anything is read or written. Bounds are those of the settings."""

import hashlib
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace

from sec_model import Definition, Graph, Payload, compile_graph
from sec_model.codec import deadline_from_proto, definition_bytes, definition_from_proto, definition_hash, payload_from_proto
from sec_model.commands import Command, SetDeadline, Signal
from sec_model.commands_codec import command_from_proto
from sec_model.definition import MAX_WAIT_S, ConstantNode, Deadline, SubsagaNode
from sec_model.graph import is_name, name_rule
from sec_model.schemas import SchemaError
from sec_model.schemas_codec import schemas_from_proto
from sec_model.versions import OFFER_RULE, is_offer
from sec_protos.v1 import common_pb2, coordinator_pb2, definition_pb2

from sec.api.answering import Context
from sec.api.errors import ApiError, invalid
from sec.core.records import SagaId
from sec.dispatch.calls import TRACEPARENT
from sec.node.settings import Limits

MAX_PAGE = 1_000
DEFAULT_PAGE = 100
MAX_CHECKED = 200
"""Definitions that are kept as they were read, the latest ones."""
_TRACEPARENT_FORM = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
MAX_COMMAND_BYTES = 16 * 1024
MAX_DESCRIPTION_BYTES = 1024 * 1024
"""Of all actions of one server, with their schemas: etcd takes 1.5 MiB at once."""


def saga_id(text: str) -> SagaId:
    """A saga's id. Raises `ApiError`."""
    if not is_name(text):
        raise invalid(f'The saga id "{text[:200]}" is not valid: use {name_rule()}.', saga_id=text[:200])
    return SagaId(text)


@dataclass(frozen=True, slots=True)
class CheckedDefinition:
    """A definition that keeps all rules. `data` are its canonical bytes, `digest` is their hash."""

    name: str
    graph: Graph
    data: bytes
    digest: str


class Definitions:
    """Checks definitions as they come in. One that comes again and again is read once, and its sagas share one graph."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._checked: OrderedDict[bytes, CheckedDefinition] = OrderedDict()

    def check(self, message: definition_pb2.SagaDefinition, saga: str) -> CheckedDefinition:
        """Raises `ApiError` and `DefinitionError`."""
        digest = hashlib.sha256(message.SerializeToString(deterministic=True)).digest()
        if (found := self._checked.get(digest)) is None:
            definition, graph = _definition(message, saga, self._limits)
            data = definition_bytes(definition)
            found = self._checked[digest] = CheckedDefinition(definition.name, graph, data, definition_hash(data))
            if len(self._checked) > MAX_CHECKED:
                self._checked.popitem(last=False)
        self._checked.move_to_end(digest)
        return found


def _definition(message: definition_pb2.SagaDefinition, saga: str, limits: Limits) -> tuple[Definition, Graph]:
    size = message.ByteSize()
    if size > limits.definition_bytes:
        raise _too_large(
            f'The definition of saga "{saga}" has {size} bytes; at most {limits.definition_bytes} are allowed.', saga, "definition"
        )
    parsed = definition_from_proto(message)
    graph = compile_graph(parsed)
    _constants(parsed, "", saga, limits)
    size = len(definition_bytes(parsed))
    if size > limits.definition_bytes:
        raise _too_large(
            f'The definition of saga "{saga}" has {size} bytes; at most {limits.definition_bytes} are allowed.', saga, "definition"
        )
    return parsed, graph


def _constants(parsed: Definition, prefix: str, saga: str, limits: Limits) -> None:
    for node in parsed.nodes:
        match node.kind:
            case ConstantNode(value):
                _bounded(value, f'The constant "{prefix}{node.name}" of saga "{saga}"', saga, limits)
            case SubsagaNode(inner, _):
                _constants(inner, f"{prefix}{node.name}/", saga, limits)


def params(message: common_pb2.Payload, saga: str, limits: Limits) -> Payload:
    """The params of a saga. Raises `ApiError`."""
    payload = payload_from_proto(message)
    _bounded(payload, f'The params of saga "{saga}"', saga, limits)
    return payload


def labels(given: Mapping[str, str], saga: str, limits: Limits) -> dict[str, str]:
    """The labels of a saga. Raises `ApiError`."""
    if len(given) > limits.labels:
        raise invalid(f'Saga "{saga}" has {len(given)} labels; at most {limits.labels} are allowed.', saga_id=saga)
    for key, value in given.items():
        if not is_name(key):
            raise invalid(f'The label "{key[:200]}" of saga "{saga}" is not valid: use {name_rule()}.', saga_id=saga)
        if len(value) > limits.label_value_chars:
            raise invalid(
                f'The label "{key}" of saga "{saga}" has {len(value)} characters; at most {limits.label_value_chars} are allowed.',
                saga_id=saga,
            )
    return dict(given)


def traceparent(context: Context) -> str:
    """The trace context in the metadata of a call. Empty when there is none, or one of another form than that of W3C: that is to be ignored."""
    found = (value for key, value in context.invocation_metadata() or () if key == TRACEPARENT)
    return next((value for value in found if isinstance(value, str) and _TRACEPARENT_FORM.fullmatch(value)), "")


def deadline(message: coordinator_pb2.SubmitSagaRequest | coordinator_pb2.SagaSubmission, saga: str) -> Deadline | None:
    """The deadline of a saga. Raises `ApiError`."""
    if not message.HasField("deadline"):
        return None
    try:
        given = deadline_from_proto(message.deadline)
    except ValueError as error:
        raise invalid(f'Saga "{saga}": {error}', saga_id=saga) from error
    if given.problem():
        raise invalid(f'The deadline of saga "{saga}" is {given.problem()}.', saga_id=saga)
    return given


def command(message: coordinator_pb2.CommandSagaRequest, now_us: int) -> Command:
    """The command that a call gives, with its times as instants. Raises `ApiError`."""
    saga = message.saga_id
    if not is_name(message.command_id):
        raise invalid(
            f'The command id "{message.command_id[:200]}" for saga "{saga}" is not valid: use {name_rule()}.', saga_id=saga
        )
    if len(message.by) > 128:
        raise invalid(
            f'Command "{message.command_id}" for saga "{saga}" is given by {len(message.by)} characters; at most 128 are allowed.',
            saga_id=saga,
        )
    if message.ByteSize() > MAX_COMMAND_BYTES:
        raise invalid(
            f'Command "{message.command_id}" for saga "{saga}" has {message.ByteSize()} bytes; at most {MAX_COMMAND_BYTES} are allowed.',
            saga_id=saga,
        )
    try:
        command = command_from_proto(message.command)
    except ValueError as error:
        raise invalid(f'Command "{message.command_id}" for saga "{saga}" is not complete. {error}', saga_id=saga) from error
    if isinstance(command, Signal) and len(command.data.content_type) > 128:
        raise invalid(
            f'Command "{message.command_id}" for saga "{saga}" brings data with a content type of {len(command.data.content_type)} '
            f"characters; at most 128 are allowed.",
            saga_id=saga,
        )
    return _dated(command, message, now_us) if isinstance(command, SetDeadline) else command


def _dated(command: SetDeadline, message: coordinator_pb2.CommandSagaRequest, now_us: int) -> SetDeadline:
    if not 0 <= command.after_s <= MAX_WAIT_S or not 0 <= command.due_us <= now_us + MAX_WAIT_S * 1_000_000:
        problem = f"not below 0, and at most {MAX_WAIT_S} seconds from now"
    elif command.after_s and command.due_us:
        problem = "one of them and not both"
    else:
        return replace(command, after_s=0.0, due_us=now_us + round(command.after_s * 1e6)) if command.after_s else command
    raise invalid(
        f'Command "{message.command_id}" for saga "{message.saga_id}" sets a deadline after {command.after_s} seconds or at {command.due_us} '
        f"microseconds since 1970: give {problem}.",
        saga_id=message.saga_id,
    )


def page_size(size: int) -> int:
    """How many sagas a page holds. Raises `ApiError`."""
    if size > MAX_PAGE:
        raise invalid(f"A page holds at most {MAX_PAGE} sagas, not {size}.")
    return size or DEFAULT_PAGE


def instance_id(text: str) -> str:
    """The instance id of an action server. Raises `ApiError`."""
    if not is_name(text):
        raise invalid(f'The instance id "{text[:200]}" of an action server is not valid: use {name_rule()}.')
    return text


def registration(message: coordinator_pb2.RegisterActionServerRequest) -> None:
    """Raises `ApiError` when an action server registers itself in a way that cannot work."""
    instance = instance_id(message.instance_id)
    host, _, port = message.address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65_536 or len(message.address) > 300:
        raise invalid(
            f'Action server "{instance}" gave the address "{message.address[:300]}": it must be "host:port", as the SEC nodes reach it.'
        )
    if host in ("0.0.0.0", "[::]", "*"):
        raise invalid(
            f'Action server "{instance}" gave the address "{message.address}", which nobody can call.',
            hint="Let it advertise the address that the SEC nodes reach it at.",
        )
    for action in message.actions:
        if not is_offer(action.name):
            raise invalid(
                f'Action server "{instance}" offers "{action.name[:200]}", which is not a valid name of an action: use {OFFER_RULE}.'
            )
    if len(message.actions) > 1_000:
        raise invalid(f'Action server "{instance}" offers {len(message.actions)} actions; at most 1000 are allowed.')
    size = sum(action.ByteSize() for action in message.actions)
    if size > MAX_DESCRIPTION_BYTES:
        raise invalid(
            f'Action server "{instance}" describes its actions in {size} bytes; at most {MAX_DESCRIPTION_BYTES} are allowed.',
            hint="Describe less of them by schemas, or offer them by several action servers.",
        )


def descriptions(message: coordinator_pb2.RegisterActionServerRequest) -> None:
    """Raises `ApiError` for schemas of actions that cannot be used. Takes some milliseconds for each action that has some."""
    for action in message.actions:
        try:
            schemas_from_proto(action.schemas)
        except SchemaError as error:
            raise invalid(
                f'Action server "{message.instance_id}" describes the action "{action.name}" in a way that cannot be used. {error}'
            ) from error


def _bounded(payload: Payload, what: str, saga: str, limits: Limits) -> None:
    if len(payload.data) > limits.payload_bytes:
        raise _too_large(
            f"{what} would take {len(payload.data)} bytes; at most {limits.payload_bytes} are allowed.", saga, "payload"
        )
    if len(payload.content_type) > 128:
        raise invalid(
            f"{what} have a content type of {len(payload.content_type)} characters; at most 128 are allowed.", saga_id=saga
        )


def _too_large(message: str, saga: str, what: str) -> ApiError:
    return invalid(message, saga_id=saga, code=f"{what}_too_large", hint="Store large data elsewhere and pass a reference.")
