"""Definitions as messages: what goes in comes out, equal ones have equal bytes, and what is left out has its default."""

from dataclasses import fields

import pytest
from hypothesis import given, settings
from model_strategies import definitions, payloads
from sec_model import (
    DEFAULT_RETRY,
    DEFAULT_UNDO_RETRY,
    ActionNode,
    ConstantNode,
    Deadline,
    Definition,
    DefinitionError,
    Input,
    Node,
    OnDeadline,
    Payload,
    RetryPolicy,
    Saga,
    SignalNode,
    SubsagaNode,
    TimerNode,
    UndoPolicy,
    action,
    compile_graph,
    constant,
    signal,
    subsaga,
    timer,
)
from sec_model.codec import (
    definition_bytes,
    definition_from_proto,
    definition_hash,
    definition_to_proto,
    payload_from_proto,
    payload_to_proto,
)
from sec_model.commands import Command, NodePath, SetDeadline, Signal
from sec_model.commands_codec import command_from_proto, command_to_proto
from sec_model.graph import MAX_NODES
from sec_protos.v1 import commands_pb2, common_pb2, definition_pb2


@settings(deadline=None, max_examples=60)
@given(definitions())
def test_a_definition_comes_back_as_it_went(definition: Definition) -> None:
    compile_graph(definition)
    data = definition_bytes(definition)
    again = definition_from_proto(definition_pb2.SagaDefinition.FromString(data))
    assert again == definition
    assert definition_bytes(again) == data


@settings(deadline=None)
@given(payloads)
def test_a_payload_comes_back_as_it_went(payload: Payload) -> None:
    assert payload_from_proto(payload_to_proto(payload)) == payload


@settings(deadline=None, max_examples=30)
@given(definitions(), definitions())
def test_different_definitions_have_different_bytes(one: Definition, other: Definition) -> None:
    assert (one == other) == (definition_bytes(one) == definition_bytes(other))


def trip() -> Definition:
    inner = Saga("alloc").append(action("id", "alloc_id")).append(constant("k", {"b": 1, "a": 2}))
    return (
        Saga("trip")
        .append(action("hotel", "book_hotel", retry=RetryPolicy(max_attempts=3, overall_timeout_s=60.0)))
        .append_parallel(action("car", "rent_car", label="A car"), subsaga("alloc", inner, params_from="hotel"))
        .append(action("confirm", "confirm", reads={"where": "hotel"}))
        .build()
    )


def test_the_hash_of_a_definition_stays_the_same() -> None:
    """Sagas in stores refer to definitions by it: a change here orphans them."""
    assert definition_hash(definition_bytes(trip())) == "d834ca7deeedac448806a7d785709b37912dbc1b317831c34e111697318cb7f5"


@pytest.mark.parametrize(
    "other",
    [
        Saga("trip").append(action("b", "x")),
        Saga("trip").append(action("a", "y")),
        Saga("other").append(action("a", "x")),
        Saga("trip").append(action("a", "x", label="l")),
        Saga("trip").append(action("a", "x", retry=RetryPolicy(max_attempts=7))),
        Saga("trip").append(action("a", "x", undo_retry=RetryPolicy(max_attempts=7))),
        Saga("trip").append(action("a", "x", undo=UndoPolicy.NONE_NEEDED)),
        Saga("trip").append(action("a", "x", undo=UndoPolicy.CONFIRM)),
        Saga("trip").append(action("a", "x", undo=UndoPolicy.MANUAL)),
        Saga("trip").append(action("a", "x", undo=UndoPolicy.POINT_OF_NO_RETURN)),
        Saga("trip").append(action("a", "x", deadline=5)),
        Saga("trip").append(constant("a", "x")),
        Saga("trip").append(signal("a")),
        Saga("trip").append(timer("a", 5)),
        Saga("trip").append(subsaga("a", Saga("trip").append(action("a", "x")))),
    ],
)
def test_every_part_of_a_definition_is_hashed(other: Saga) -> None:
    definition = Saga("trip").append(action("a", "x")).build()
    assert definition_hash(definition_bytes(other.build())) != definition_hash(definition_bytes(definition))


def test_what_becomes_of_a_deadline_is_hashed() -> None:
    fail, pause = (Definition("s", (Node("a", SignalNode(Deadline(5, then))),)) for then in OnDeadline)
    assert definition_bytes(fail) != definition_bytes(pause)


def test_a_time_and_an_instant_are_hashed_apart() -> None:
    time, instant = (Definition("s", (Node("a", kind),)) for kind in (TimerNode(after_s=5), TimerNode(until_us=5)))
    assert definition_bytes(time) != definition_bytes(instant)


def test_order_is_part_of_a_definition() -> None:
    a, b, z = Node("a", ActionNode("x")), Node("b", ActionNode("x")), Node("z", ActionNode("x"), ("a", "b"))
    assert definition_bytes(Definition("s", (a, b, z))) != definition_bytes(Definition("s", (b, a, z)))


def test_what_is_left_out_of_a_message_has_its_default() -> None:
    message = definition_pb2.SagaDefinition(name="s")
    message.nodes.add(name="a").action.action = "x"
    definition = definition_from_proto(message)
    assert definition == Definition("s", (Node("a", ActionNode("x", DEFAULT_RETRY, DEFAULT_UNDO_RETRY)),))
    assert definition_bytes(definition) == message.SerializeToString(deterministic=True), "and is left out again"


def test_the_default_policies_are_those_of_the_contract() -> None:
    """Stored definitions leave them out: another default in a later version would change what a saga in a store does."""
    numbers = {"initial_backoff_s": 0.1, "max_backoff_s": 30.0, "multiplier": 2.0, "jitter": 0.5, "attempt_timeout_s": 30.0}
    assert RetryPolicy(max_attempts=8, **numbers, overall_timeout_s=None) == DEFAULT_RETRY
    assert RetryPolicy(max_attempts=20, **numbers, overall_timeout_s=None) == DEFAULT_UNDO_RETRY


@pytest.mark.parametrize("do", [None, DEFAULT_RETRY, DEFAULT_UNDO_RETRY, RetryPolicy(jitter=0.0)], ids=repr)
@pytest.mark.parametrize("undo", [None, DEFAULT_UNDO_RETRY, DEFAULT_RETRY, RetryPolicy(max_attempts=3)], ids=repr)
def test_a_default_that_is_written_out_is_the_same_as_none(do: RetryPolicy | None, undo: RetryPolicy | None) -> None:
    """As a client in another language may send it: every number there, or no policy at all."""
    message = definition_pb2.SagaDefinition(name="s")
    sent = message.nodes.add(name="a").action
    sent.action = "x"
    for policy, written in ((do, sent.retry), (undo, sent.undo_retry)):
        if policy is not None:
            written.CopyFrom(written_out(policy))
    definition = definition_from_proto(message)
    policies = (do or DEFAULT_RETRY, undo or DEFAULT_UNDO_RETRY)
    assert definition == Definition("s", (Node("a", ActionNode("x", *policies)),))
    stored = definition_pb2.SagaDefinition.FromString(definition_bytes(definition))
    assert definition_from_proto(stored) == definition
    assert stored.nodes[0].action.HasField("retry") == (policies[0] != DEFAULT_RETRY)
    assert stored.nodes[0].action.HasField("undo_retry") == (policies[1] != DEFAULT_UNDO_RETRY)


def written_out(policy: RetryPolicy) -> common_pb2.RetryPolicy:
    given = {field.name: getattr(policy, field.name) for field in fields(policy)}
    return common_pb2.RetryPolicy(**{**given, "overall_timeout_s": policy.overall_timeout_s or 0.0})


def test_as_many_nodes_as_are_allowed_fit_into_a_definition() -> None:
    saga = Saga("long")
    for number in range(MAX_NODES):
        saga.append(action(f"provision-{number:05}", "provision_instance", label=f"Instance {number}"))
    assert len(definition_bytes(saga.build())) < 1024 * 1024


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (common_pb2.RetryPolicy(max_attempts=3), RetryPolicy(max_attempts=3)),
        (common_pb2.RetryPolicy(jitter=0.0), RetryPolicy(jitter=0.0)),
        (common_pb2.RetryPolicy(initial_backoff_s=2.0, max_backoff_s=4.0), RetryPolicy(initial_backoff_s=2.0, max_backoff_s=4.0)),
        (common_pb2.RetryPolicy(multiplier=3.0, attempt_timeout_s=5.0), RetryPolicy(multiplier=3.0, attempt_timeout_s=5.0)),
        (common_pb2.RetryPolicy(overall_timeout_s=9.0), RetryPolicy(overall_timeout_s=9.0)),
        (common_pb2.RetryPolicy(overall_timeout_s=0.0), RetryPolicy()),
        (common_pb2.RetryPolicy(heartbeat_timeout_s=9.0), RetryPolicy(heartbeat_timeout_s=9.0)),
        (common_pb2.RetryPolicy(heartbeat_timeout_s=0.0), RetryPolicy()),
    ],
)
def test_a_policy_given_in_part(given: common_pb2.RetryPolicy, expected: RetryPolicy) -> None:
    message = definition_pb2.SagaDefinition(name="s")
    message.nodes.add(name="a").action.CopyFrom(definition_pb2.ActionNode(action="x", retry=given))
    assert definition_from_proto(message).nodes[0].kind == ActionNode("x", expected)


def test_an_input_without_a_name_has_that_of_its_node() -> None:
    message = definition_pb2.SagaDefinition(name="s")
    message.nodes.add(name="a").action.action = "x"
    second = message.nodes.add(name="b", depends_on=["a"])
    second.inputs.add(node="a")
    second.inputs.add(node="a", name="where")
    second.action.action = "x"
    assert definition_from_proto(message).nodes[1].inputs == (Input("a", "a"), Input("where", "a"))


def test_nodes_of_no_kind_are_all_told() -> None:
    message = definition_pb2.SagaDefinition(name="s")
    message.nodes.add(name="a")
    inner = message.nodes.add(name="x").subsaga.saga
    inner.name = "inner"
    inner.nodes.add(name="b")
    with pytest.raises(DefinitionError) as caught:
        definition_from_proto(message)
    assert caught.value.problems == (
        'Node "a" is of no kind that this version knows: action, constant, signal, timer, subsaga.',
        'Node "x/b" is of no kind that this version knows: action, constant, signal, timer, subsaga.',
    )


def test_undo_policies_and_consequences_that_are_left_out_have_their_defaults() -> None:
    message = definition_pb2.SagaDefinition(name="s")
    message.nodes.add(name="a").action.CopyFrom(definition_pb2.ActionNode(action="x", deadline=definition_pb2.Deadline(after_s=5)))
    message.nodes.add(name="b", depends_on=["a"]).signal.deadline.after_s = 6
    given = definition_pb2.ActionNode(action="x", undo=definition_pb2.UNDO_POLICY_ACTION)
    message.nodes.add(name="c", depends_on=["b"]).action.CopyFrom(given)
    kinds = [node.kind for node in definition_from_proto(message).nodes]
    assert kinds == [ActionNode("x", deadline=Deadline(5, OnDeadline.FAIL)), SignalNode(Deadline(6)), ActionNode("x")]


def test_policies_of_a_later_version_are_told() -> None:
    message = definition_pb2.SagaDefinition(name="s")
    message.nodes.add(name="a").action.CopyFrom(definition_pb2.ActionNode(action="x", undo=77))  # type: ignore[arg-type]
    inner = message.nodes.add(name="x", depends_on=["a"]).subsaga.saga
    inner.name = "inner"
    inner.nodes.add(name="b").signal.deadline.then = 78  # type: ignore[assignment]
    with pytest.raises(DefinitionError) as caught:
        definition_from_proto(message)
    assert caught.value.problems == (
        'Node "a" has the unknown undo policy 77.',
        'Node "x/b": A deadline has the unknown consequence 78.',
    )


@pytest.mark.parametrize(
    "command",
    [
        Signal(NodePath("x/a"), Payload.json({"by": "Ada"})),
        SetDeadline(NodePath(""), OnDeadline.PAUSE, due_us=7),
        SetDeadline(NodePath("a"), OnDeadline.FAIL, after_s=1.5),
        SetDeadline(NodePath("a")),
    ],
    ids=repr,
)
def test_a_command_comes_back_as_it_went(command: Command) -> None:
    data = command_to_proto(command).SerializeToString()
    assert command_from_proto(commands_pb2.Command.FromString(data)) == command


def test_a_command_with_a_consequence_of_a_later_version_is_told() -> None:
    message = commands_pb2.Command(set_deadline=commands_pb2.SetDeadline(then=78))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^A deadline has the unknown consequence 78\.$"):
        command_from_proto(message)


def test_every_kind_of_node_in_one_message() -> None:
    message = definition_to_proto(trip())
    assert [n.WhichOneof("kind") for n in message.nodes] == ["action", "action", "subsaga", "action"]
    assert message.nodes[2].subsaga.params_from == "hotel"
    assert message.nodes[2].subsaga.saga.nodes[1].constant.value.data == b'{"b":1,"a":2}'
    assert list(message.nodes[3].depends_on) == ["car", "alloc"]
    assert definition_from_proto(message) == trip()


def test_a_payload_without_a_value() -> None:
    node = Node("k", ConstantNode(Payload()))
    definition = Definition("s", (node, Node("x", SubsagaNode(Definition("i", (node,))), ("k",))))
    assert definition_from_proto(definition_to_proto(definition)) == definition
