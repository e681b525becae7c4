"""Handlers with typed parameters: what they are given, and how they describe their actions."""

import enum
import json
import logging
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal, NotRequired, TypedDict

import grpc
import pydantic
import pytest
from client_support import serving, status_of
from sec_client import DefinitionError, Saga, action
from sec_client.kit import ActionFailed, ActionServer, Call, MemoryStore
from sec_client.kit.rules import Delivery
from sec_client.kit.typed import json_schema
from sec_model import Payload
from sec_protos.v1 import action_server_pb2


class Zone(enum.Enum):
    EAST = "east"
    WEST = "west"


@dataclass
class Ip:
    address: str
    zone: Zone = Zone.EAST


@dataclass
class Instance:
    name: str
    ip: Ip
    tags: list[str] = field(default_factory=list)
    parent: "Instance | None" = None


class Wishes(TypedDict):
    size: int
    colour: NotRequired[Literal["red", "blue"]]


class Guest(pydantic.BaseModel):
    name: str = pydantic.Field(min_length=2)
    home: "Address | None" = None


class Address(pydantic.BaseModel):
    street: str


@dataclass
class Booking:
    guest: Guest
    day: date


def server() -> ActionServer:
    return ActionServer("typed", store=MemoryStore())


def value_of(answer: Any) -> Any:
    assert answer.WhichOneof("result") == "output", answer
    return json.loads(answer.output.data)


IP = {"address": "10.0.0.1", "zone": "west"}


async def test_parameters_are_the_inputs_and_the_params_of_a_call() -> None:
    made, seen = server(), []

    @made.action(undo=None)
    def boot(
        call: Call, ip: Ip, names: dict[str, list[int]], params: Wishes, mode: Literal["fast"] | None = None, *, guest: Guest
    ) -> Instance:
        seen.append((ip, names, params, mode, guest))
        return Instance("i-1", ip)

    inputs = {"ip": IP, "names": {"a": [1]}, "guest": {"name": "Ada"}}
    async with serving(made) as actions:
        answer = await actions.do("boot", params={"size": 3}, inputs=inputs)
        await actions.do("boot", "k2", params={"size": 3}, inputs={**inputs, "mode": "fast", "other": 1})
    assert seen[0] == (Ip("10.0.0.1", Zone.WEST), {"a": [1]}, {"size": 3}, None, Guest(name="Ada"))
    assert seen[1][3] == "fast"
    assert value_of(answer) == {"name": "i-1", "ip": IP, "tags": [], "parent": None}


async def test_an_async_handler_and_its_undo() -> None:
    made, seen = server(), []

    @made.action()
    async def boot(call: Call, ip: Ip) -> Ip:
        return ip

    @boot.undo
    async def stop(call: Call, output: Ip | None, params: Wishes | None) -> None:
        seen.append((output, params))

    async with serving(made) as actions:
        await actions.do("boot", inputs={"ip": IP}, params=None)
        await actions.undo("boot")
        await actions.undo("boot", "k2", output=IP)
    assert seen == [(Ip("10.0.0.1", Zone.WEST), None)] * 2


async def test_output_is_none_when_nobody_knows_it() -> None:
    made, seen = server(), []

    @made.action()
    def boot(call: Call) -> Ip:
        raise RuntimeError("it broke off")

    @boot.undo
    def stop(call: Call, output: Ip | None) -> None:
        seen.append(output)

    async with serving(made) as actions:
        await status_of(actions.do("boot"))
        assert not (await actions.undo("boot")).HasField("failure")
    assert seen == [None]


async def test_raw_values_come_as_they_are() -> None:
    made, seen = server(), []

    @made.action(undo=None)
    def look(call: Call, anything, some: Any, raw: Payload, params: bytes) -> bytes:  # type: ignore[no-untyped-def] # one has no type on purpose
        seen.append((anything, some, raw, params))
        return params

    async with serving(made) as actions:
        answer = await actions.do(
            "look", params=Payload("image/png", b"\x00"), inputs={"anything": [1], "some": {"a": 1}, "raw": None}
        )
    assert seen == [([1], {"a": 1}, Payload("application/json", b"null"), b"\x00")]
    assert answer.output.data == b"\x00"


async def test_parameters_of_the_handlers_own_are_left_alone() -> None:
    made, seen = server(), []
    for name in ("a", "b"):

        @made.action(name, undo=None)
        def do(call: Call, name=name, *rest: int, **options: int) -> None:  # type: ignore[no-untyped-def] # as in a loop
            seen.append((name, rest, options))

    async with serving(made) as actions:
        await actions.do("a", inputs={"name": "other", "options": 1, "rest": 2})
    assert seen == [("a", (), {})]
    assert next(iter(made.actions)).schemas[0].inputs == {}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"ip": {"address": 5}}, 'What came as "ip" is not Ip: Expected `str`, got `int` - at `$.address`.'),
        ({"ip": {**IP, "zone": "north"}}, "What came as \"ip\" is not Ip: Invalid enum value 'north' - at `$.zone`."),
        ({}, 'The node reads no input "ip".'),
        (
            {"ip": IP, "guest": {"name": "A"}},
            'What came as "guest" is not Guest | None: name: String should have at least 2 characters.',
        ),
    ],
)
async def test_a_value_that_is_not_as_annotated_is_a_failure_without_effect(inputs: Any, message: str) -> None:
    made, seen = server(), []

    @made.action()
    def boot(call: Call, ip: Ip, guest: Guest | None = None) -> None:
        seen.append("do")

    @boot.undo
    def stop(call: Call, ip: Ip) -> None:
        seen.append("undo")

    async with serving(made) as actions:
        answer = await actions.do("boot", inputs=inputs)
        assert (answer.failure.message, answer.failure.code) == (message, "bad_input")
        assert (await actions.do("boot", inputs=inputs)).failure == answer.failure
        assert not (await actions.undo("boot")).HasField("failure"), "there is nothing to undo, whatever its inputs are"
    assert seen == []


async def test_bytes_where_json_is_wanted_and_the_other_way_round() -> None:
    made = server()

    @made.action("json", undo=None)
    def json_(call: Call, params: Wishes) -> None: ...

    @made.action("bytes", undo=None)
    def bytes_(call: Call, params: bytes) -> None: ...

    async with serving(made) as actions:
        answers = [
            await actions.do("json", params=Payload("image/png", b"\x00")),
            await actions.do("bytes", "k2", params={"size": 1}),
            await actions.do("json", "k3", params=Payload("application/json", b"{")),
        ]
    assert [a.failure.message for a in answers] == [
        'What came as "params" is not Wishes: it is image/png.',
        'What came as "params" is not bytes: it is application/json.',
        'What came as "params" is not Wishes: Input data was truncated.',
    ]


async def test_after_an_earlier_call_a_value_that_is_not_as_annotated_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    """The earlier call may have had the effect, by another version of the server."""
    store = MemoryStore()
    await store.begin(Delivery("k1", "u1", 1, undo=False))
    made = ActionServer("typed", store=store)

    @made.action(undo=None)
    def boot(call: Call, ip: Ip) -> None: ...

    async with serving(made) as actions:
        code, message = await status_of(actions.do("boot", inputs={"ip": 5}))
    assert code is grpc.StatusCode.INTERNAL
    assert message == 'BadInput: What came as "ip" is not Ip: Expected `object`, got `int`.'
    assert "What came as" in caplog.text


async def test_in_an_undo_a_value_that_is_not_as_annotated_is_called_again(caplog: pytest.LogCaptureFixture) -> None:
    made, seen = server(), []

    @made.action()
    def boot(call: Call) -> str:
        return "i-1"

    @boot.undo
    def stop(call: Call, output: Ip | None) -> None:
        seen.append(output)

    async with serving(made) as actions:
        await actions.do("boot")
        code, message = await status_of(actions.undo("boot"))
    assert code is grpc.StatusCode.INTERNAL
    assert message == 'BadInput: What came as "output" is not Ip | None: Expected `object | null`, got `str`.'
    assert seen == []
    assert [r.levelno for r in caplog.records if "outcome is not known" in r.message] == [logging.ERROR]


def described(handler: Any, **options: Any) -> action_server_pb2.ActionSchemas:
    from sec_model.schemas_codec import schemas_to_proto

    made = server()
    made.action("a", undo=None, **options)(handler)
    made.actions.check()
    return schemas_to_proto(next(iter(made.actions)).schemas[0])


def test_annotations_describe_the_action() -> None:
    def boot(call: Call, ip: Ip, params: Wishes, mode: str = "", anything: Any = None, *, raw: bytes) -> list[Instance]:
        return []

    found = described(boot)
    assert sorted(found.inputs) == ["anything", "ip", "mode", "raw"]
    assert [*found.optional_inputs] == ["anything", "mode"]
    assert found.inputs["raw"] == found.inputs["anything"] == "true"
    assert json.loads(found.inputs["mode"]) == {"type": "string"}
    assert json.loads(found.params)["$defs"]["Wishes"] == {
        "title": "Wishes",
        "type": "object",
        "properties": {"size": {"type": "integer"}, "colour": {"enum": ["blue", "red"]}},
        "required": ["size"],
    }
    output = json.loads(found.output)
    assert output["items"] == {"$ref": "#/$defs/Instance"}
    assert output["$defs"]["Instance"]["properties"]["parent"]["anyOf"] == [{"$ref": "#/$defs/Instance"}, {"type": "null"}]


def test_models_of_pydantic_describe_themselves_wherever_they_stand() -> None:
    def book(call: Call, guest: Guest) -> Booking:
        raise NotImplementedError

    found = described(book)
    assert json.loads(found.inputs["guest"])["properties"]["name"] == {"minLength": 2, "title": "Name", "type": "string"}
    output = json.loads(found.output)
    assert output["$defs"]["Booking"]["properties"]["guest"]["properties"]["home"]["anyOf"][0] == {"$ref": "#/$defs/Address"}
    assert output["$defs"]["Address"]["required"] == ["street"]


async def test_models_of_pydantic_are_answered_as_json() -> None:
    made = server()

    @made.action(undo=None)
    def book(call: Call) -> Booking:
        return Booking(Guest(name="Ada", home=Address(street="Long")), date(2030, 1, 2))

    async with serving(made) as actions:
        answer = await actions.do("book")
    assert value_of(answer) == {"guest": {"name": "Ada", "home": {"street": "Long"}}, "day": "2030-01-02"}


@pytest.mark.parametrize("kind", [Any, bytes, Payload, complex, "NotDefined", Ip | Instance])
def test_what_no_schema_describes_is_not_described(kind: Any) -> None:
    def handler(call: Call) -> kind: ...

    assert described(handler) == action_server_pb2.ActionSchemas()


def test_given_schemas_replace_derived_ones() -> None:
    def boot(call: Call, ip: Ip, mode: str) -> Instance:
        raise NotImplementedError

    found = described(
        boot,
        params_schema={"type": "string"},
        input_schemas={"ip": True, "extra": '{"type": "null"}'},
        optional_inputs=["extra"],
        output_schema={},
    )
    assert found.params == '{"type": "string"}'
    assert found.inputs == {"ip": "true", "mode": '{"type":"string"}', "extra": '{"type": "null"}'}
    assert [*found.optional_inputs] == ["extra"]
    assert found.output == "{}"


class Other:
    pass


def positional(call: Call, ip: Ip, /) -> None: ...


def undescribable(call: Call, x: Other) -> None: ...


def ambiguous(call: Call, x: Ip | Instance) -> None: ...


def unresolved(call: Call, x: "NotThere") -> None: ...  # type: ignore[name-defined] # noqa: F821 # on purpose


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (
            positional,
            'The action of "a" cannot be called as it is declared. The parameter "ip" is positional-only, and would be given by its name.',
        ),
        (undescribable, 'The type of the parameter "x" cannot be read from JSON: '),
        (ambiguous, 'The type of the parameter "x" cannot be read from JSON: Type unions may not contain more than one dataclass'),
        (unresolved, "Its annotations cannot be resolved: name 'NotThere' is not defined."),
    ],
)
def test_handlers_that_cannot_be_called_keep_the_server_from_starting(handler: Any, message: str) -> None:
    with pytest.raises(ValueError, match="cannot be called as it is declared") as raised:
        described(handler)
    assert message in str(raised.value)


def test_an_undo_must_cope_with_an_output_that_nobody_knows() -> None:
    made = server()

    @made.action()
    def boot(call: Call) -> Ip:
        raise ActionFailed("no")

    @boot.undo
    def stop(call: Call, output: Ip) -> None: ...

    with pytest.raises(ValueError, match=r"must allow None, as nobody may know what the action answered: write Ip \| None\.$"):
        made.actions.check()


def test_a_given_schema_that_is_none_keeps_the_server_from_starting() -> None:
    with pytest.raises(ValueError, match=r'^The action "a" cannot be described\. The schema of the output is not valid\.'):
        described(lambda call: None, output_schema={"type": "strin"})


def test_two_types_of_one_name_are_refused() -> None:
    class Address:
        pass

    @dataclass
    class Both:
        ip: "dict[str, Guest]"
        address: Any

    Both.__annotations__["address"] = dataclass(type("Address", (), {"__annotations__": {"x": int}}))
    Both.__annotations__["ip"] = dict[str, Guest]
    with pytest.raises(TypeError, match='two types are called "Address"'):
        json_schema(Both, "validation")


def test_the_actions_of_a_server_check_a_saga_without_a_cluster() -> None:
    made = server()

    @made.action(undo=None)
    def allocate(call: Call) -> Ip:
        raise NotImplementedError

    @made.action(undo=None)
    def boot(call: Call, ip: Ip, instance: Instance) -> None: ...

    saga = Saga("s").append(action("ip", "allocate")).append(action("boot", "boot", reads={"ip": "ip", "instance": "ip"}))
    with pytest.raises(DefinitionError) as raised:
        saga.build(actions=made.actions)
    head = 'Input "instance" of node "boot" is not what action "boot" wants: the output of node "ip" (action "allocate") '
    assert raised.value.problems == (f'{head}has no field "name".', f'{head}has no field "ip".')
