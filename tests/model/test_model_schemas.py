"""What nodes read is checked against what their actions want: only what cannot work is a problem."""

import json
from dataclasses import dataclass
from typing import Any

import pytest
from sec_model import (
    ActionSchemas,
    DefinitionError,
    Payload,
    Saga,
    Schema,
    SchemaError,
    action,
    check_definition,
    compile_graph,
    constant,
    subsaga,
)
from sec_model.edges import MAX_TOLD, check_edges, edge_problems, offered, params_problems
from sec_model.schemas import MAX_SCHEMA_BYTES, Budget, action_schemas
from sec_model.schemas_codec import schemas_from_proto, schemas_to_proto

STRING, INTEGER, NUMBER, NULL = ({"type": t} for t in ("string", "integer", "number", "null"))


def record(**properties: Any) -> dict[str, Any]:
    """An object with these properties, all of them required."""
    return {"type": "object", "properties": properties, "required": [*properties]}


def items(of: Any) -> dict[str, Any]:
    return {"type": "array", "items": of}


def either(*alternatives: Any) -> dict[str, Any]:
    return {"anyOf": [*alternatives]}


def tree(value: Any) -> dict[str, Any]:
    """Values with children of the same kind."""
    return {"$ref": "#/$defs/Tree", "$defs": {"Tree": record(value=value, children=items({"$ref": "#/$defs/Tree"}))}}


def described(*, params: Any = None, output: Any = None, optional: tuple[str, ...] = (), **inputs: Any) -> ActionSchemas:
    def text(schema: Any) -> str:
        return "" if schema is None else json.dumps(schema)

    return action_schemas(text(params), {name: text(schema) for name, schema in inputs.items()}, optional, text(output))


@dataclass(frozen=True)
class Offer:
    name: str
    schemas: tuple[ActionSchemas, ...]


def offer(name: str, *ways: ActionSchemas) -> Offer:
    return Offer(name, ways)


def told(saga: Saga, *offers: Offer, params: Payload | None = None) -> list[str]:
    return edge_problems(compile_graph(saga.build()), offers, params)


def reads_from_action(output: Any, wanted: Any) -> list[str]:
    """What is told of a node that reads an output; without what every such sentence begins with."""
    saga = Saga("edge").append(action("ip", "make")).append(action("boot", "use", reads=["ip"]))
    head = 'Input "ip" of node "boot" is not what action "use" wants: the output of node "ip" (action "make") '
    found = told(saga, offer("make", described(output=output)), offer("use", described(ip=wanted)))
    assert all(problem.startswith(head) for problem in found)
    return [problem.removeprefix(head) for problem in found]


@pytest.mark.parametrize(
    ("output", "wanted"),
    [
        (STRING, STRING),
        (record(a=STRING, more=INTEGER), record(a=STRING)),
        (INTEGER, NUMBER),
        (NUMBER, INTEGER),  # it may be a whole one
        (True, record(a=STRING)),
        (record(a=STRING), True),
        (record(a=STRING), {}),
        ({"type": "object"}, record(a=STRING)),  # says nothing of its fields
        ({**record(a=STRING), "additionalProperties": True}, record(b=STRING)),
        ({**record(a=STRING), "additionalProperties": STRING}, record(b=STRING)),
        ({**record(a=STRING), "patternProperties": {"^b": STRING}}, record(b=STRING)),
        ({"type": "object", "properties": {"a": STRING}}, record(a=STRING)),  # it may be there
        (record(a=STRING), {"type": "object", "properties": {"b": INTEGER}}),  # it need not be there
        (STRING, either(STRING, NULL)),
        (either(STRING, NULL), STRING),  # it may be there
        (STRING, {"type": ["string", "null"]}),
        (either(STRING, INTEGER), either(INTEGER, {"type": "boolean"})),
        (items(record(a=STRING)), items(record(a=STRING))),
        (tree(STRING), tree(STRING)),
        (tree(STRING), record(value=STRING)),
        ({"enum": ["a", "b"]}, {"enum": ["b", "c"]}),
        ({"enum": ["a"]}, STRING),
        ({"allOf": [record(a=STRING), record(b=STRING)]}, record(c=STRING)),  # not understood
        (record(a=STRING), {"allOf": [record(b=STRING), record(c=STRING)]}),
        ({"type": "object", "properties": {"a": STRING}, "if": {}, "then": record(b=STRING)}, record(b=STRING)),
        (record(a=STRING), {"not": {}}),
        ({"$ref": "#"}, STRING),  # a circle
        ({"type": "array", "prefixItems": [STRING, INTEGER], "items": False}, {"type": "array", "prefixItems": [STRING]}),
        ({"type": "object", "additionalProperties": INTEGER}, {"type": "object", "additionalProperties": NUMBER}),
    ],
)
def test_what_may_work_is_no_problem(output: Any, wanted: Any) -> None:
    assert reads_from_action(output, wanted) == []


@pytest.mark.parametrize(
    ("output", "wanted", "problems"),
    [
        (STRING, INTEGER, ["is string, where integer is wanted."]),
        (record(a=STRING), record(b=STRING), ['has no field "b".']),
        (
            record(a=STRING, b=STRING),
            record(a=INTEGER, c=STRING),
            ['has no field "c".', "is string at $.a, where integer is wanted."],
        ),
        (record(net=record(a=STRING)), record(net=record(b=STRING)), ['has no field "b" at $.net.']),
        (items(record(a=STRING)), items(record(b=STRING)), ['has no field "b" at $[].']),
        (record(l=items(items(STRING))), record(l=items(items(INTEGER))), ["is string at $.l[][], where integer is wanted."]),
        (STRING, record(a=STRING), ["is string, where object is wanted."]),
        (NULL, STRING, ["is null, where string is wanted."]),
        (STRING, either(INTEGER, NULL), ["is string, where integer or null is wanted."]),
        (record(a=STRING), either(record(b=STRING), NULL), ['has no field "b".']),
        (either(record(a=STRING), NULL), record(b=STRING), ['has no field "b".']),
        (either(record(a=STRING), NULL), either(record(b=STRING), NULL), ['has no field "b".']),
        ({"type": ["string", "null"]}, {"type": ["integer", "null"]}, ["is string, where integer or null is wanted."]),
        ({"type": ["object", "null"], "properties": {"a": STRING}}, record(b=STRING), ['has no field "b".']),
        (tree(STRING), tree(INTEGER), ["is string at $.value, where integer is wanted."]),
        (
            {"$ref": "#/$defs/A~1B", "$defs": {"A/B": record(a=STRING)}},
            {"allOf": [{"$ref": "#/$defs/C"}], "$defs": {"C": record(b=STRING)}, "title": "C"},
            ['has no field "b".'],
        ),
        ({"enum": ["a", "b"]}, {"const": "c"}, ['can only be "a" or "b", where "c" is wanted.']),
        ({"enum": ["a"]}, INTEGER, ["is string, where integer is wanted."]),
        (
            {"type": "object", "additionalProperties": INTEGER},
            record(a=STRING),
            ["is integer at $.a, where string is wanted."],
        ),
        (record(a=STRING), {"type": "object", "additionalProperties": INTEGER}, ["is string at $.a, where integer is wanted."]),
        (
            {"type": "object", "additionalProperties": STRING},
            {"type": "object", "additionalProperties": INTEGER},
            ["is string at $.*, where integer is wanted."],
        ),
        (
            record(a=STRING, b=STRING),
            {**record(a=STRING), "additionalProperties": False},
            ['has a field "b", which is not wanted.'],
        ),
        (
            {"type": "array", "prefixItems": [STRING, STRING], "minItems": 2},
            {"type": "array", "prefixItems": [STRING, INTEGER]},
            ["is string at $[1], where integer is wanted."],
        ),
        (
            {"type": "array", "maxItems": 1},
            {"type": "array", "minItems": 2},
            ["has at most 1 items, where at least 2 are wanted."],
        ),
    ],
)
def test_what_cannot_work_is_told(output: Any, wanted: Any, problems: list[str]) -> None:
    assert reads_from_action(output, wanted) == problems


def test_a_constant_is_validated_and_the_place_is_named() -> None:
    saga = Saga("c").append(constant("size", {"gb": ["1", 2]})).append(action("disk", "make", reads={"wanted": "size"}))
    problems = told(saga, offer("make", described(wanted=record(gb=items(INTEGER), kind=STRING))))
    head = 'Input "wanted" of node "disk" is not what action "make" wants: the constant "size" is wrong at '
    assert problems == [f"{head}$.gb[0]: '1' is not of type 'integer'.", f"{head}$: 'kind' is a required property."]
    assert told(saga, offer("make", described(wanted=record(gb=items({"type": ["string", "integer"]}))))) == []


def test_of_payloads_that_are_no_json_nothing_is_said() -> None:
    saga = Saga("c").append(constant("key", Payload("application/octet-stream", b"\x00"))).append(action("n", "use", reads=["key"]))
    assert told(saga, offer("use", described(key=STRING))) == []


def test_a_constant_that_claims_to_be_json_and_is_not() -> None:
    saga = Saga("c").append(constant("key", Payload("application/json", b"{"))).append(action("n", "use", reads=["key"]))
    assert told(saga, offer("use", described(key=STRING)))[0].endswith('the constant "key" is wrong at $: it is not JSON.')


def test_an_input_that_is_wanted_and_not_read() -> None:
    saga = Saga("s").append(action("boot", "boot_instance"))
    problem = 'Node "boot" calls "boot_instance", which wants an input "ip" that the node does not read.'
    assert told(saga, offer("boot_instance", described(ip=STRING))) == [problem]
    assert told(saga, offer("boot_instance", described(ip=None))) == [problem], "a schema that says nothing still wants the input"
    assert told(saga, offer("boot_instance", described(ip=STRING, optional=("ip",)))) == []


def test_an_input_that_the_action_does_not_know_is_no_problem() -> None:
    saga = Saga("s").append(constant("a", 1)).append(action("boot", "boot_instance", reads=["a"]))
    assert told(saga, offer("boot_instance", described(output=STRING))) == []


def test_an_optional_input_that_is_read_must_fit() -> None:
    saga = Saga("s").append(constant("ip", 1)).append(action("boot", "boot_instance", reads=["ip"]))
    assert len(told(saga, offer("boot_instance", described(ip=STRING, optional=("ip",))))) == 1


def test_the_output_of_a_subsaga_is_that_of_its_final_node() -> None:
    inner = Saga("inner").append(action("a", "other")).append(action("b", "make"))
    outer = (
        Saga("outer")
        .append(subsaga("alloc", Saga("middle").append(subsaga("deep", inner))))
        .append(action("n", "use", reads=["alloc"]))
    )
    offers = (offer("make", described(output=record(a=STRING))), offer("use", described(alloc=record(b=STRING))))
    assert told(outer, *offers) == [
        'Input "alloc" of node "n" is not what action "use" wants: '
        'the output of node "alloc/deep/b" (action "make") has no field "b".'
    ]


def test_the_params_of_a_subsaga_come_from_a_node() -> None:
    inner = Saga("inner").append(action("a", "use"))
    wants = offer("use", described(params=record(rack=STRING)))

    def saga(source: Any) -> Saga:
        return Saga("outer").append(source).append(subsaga("sub", inner, params_from="p"))

    head = 'The params of node "sub/a" are not what action "use" wants: '
    assert told(saga(constant("p", {"rack": 1})), wants) == [
        f"{head}the constant \"p\" is wrong at $.rack: 1 is not of type 'string'."
    ]
    made = offer("make", described(output=record(row=STRING)))
    assert told(saga(action("p", "make")), wants, made) == [f'{head}the output of node "p" (action "make") has no field "rack".']
    assert told(saga(constant("p", {"rack": "r1"})), wants) == []


def test_params_are_checked_when_they_are_known() -> None:
    saga = Saga("s").append(action("a", "use")).append(subsaga("sub", Saga("inner").append(action("b", "use"))))
    wants = offer("use", described(params=record(guest=STRING)))
    head = 'The params of the saga are not what action "use" of node "a" wants: '
    assert told(saga, wants) == []
    assert told(saga, wants, params=Payload.json({"guest": "Ada"})) == []
    assert told(saga, wants, params=Payload.json({"guest": 1})) == [f"{head}wrong at $.guest: 1 is not of type 'string'."]
    assert told(saga, wants, params=Payload()) == [f"{head}there are none."]
    assert told(saga, offer("use", described(params=either(NULL, STRING))), params=Payload()) == []


def test_of_several_descriptions_each_must_have_the_problem() -> None:
    saga = Saga("s").append(action("ip", "make")).append(action("boot", "use", reads=["ip"]))
    old, new = described(output=record(a=STRING)), described(output=record(b=STRING))
    reads_a, reads_b, reads_c = (described(ip=record(**{name: STRING})) for name in "abc")
    assert told(saga, offer("make", old), offer("use", reads_b)) != []
    assert told(saga, offer("make", old, new), offer("use", reads_b)) == []
    assert told(saga, offer("make", old), offer("use", reads_b, reads_a)) == []
    assert told(saga, offer("make", old), offer("make", new), offer("use", reads_b)) == [], (
        "servers that are listed one by one add up"
    )
    assert told(saga, offer("make", old, new), offer("use", reads_c))[0].endswith('has no field "c".')
    assert told(saga, offer("make", old, ActionSchemas()), offer("use", reads_b)) == [], (
        "a server that says nothing may answer anything"
    )
    assert told(saga, offer("make", old), offer("use", reads_b, ActionSchemas())) == []
    assert told(saga, offer("make", old), offer("use", reads_b), Offer("use", ())) == []


def test_the_builder_checks_and_so_does_the_function_for_definitions() -> None:
    saga = Saga("s").append(action("a", "use"))
    offers = [offer("use", described(params=STRING, ip=STRING))]
    with pytest.raises(DefinitionError) as raised:
        saga.build(actions=offers, params=1)
    assert len(raised.value.problems) == 2
    with pytest.raises(DefinitionError) as again:
        check_definition(saga.build(), actions=offers, params=1)
    assert again.value.problems == raised.value.problems
    assert saga.build(actions=[]) == saga.build()


def test_only_so_many_problems_are_told() -> None:
    saga = Saga("s")
    for number in range(MAX_TOLD + 5):
        saga.append(action(f"n{number}", "use"))
    assert len(told(saga, offer("use", described(ip=STRING)))) == MAX_TOLD


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "It is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)."),
        (
            '{"type": "strin"}',
            "It is no JSON Schema of draft 2020-12, at $.type: 'strin' is not valid under any of the given schemas.",
        ),
        ("[]", "It is no JSON Schema of draft 2020-12, at $: [] is not of type 'object', 'boolean'."),
        (
            '{"$ref": "http://127.0.0.1:9/x"}',
            'Its reference "http://127.0.0.1:9/x" leads nowhere: write it as a JSON pointer into the same document ("#/$defs/Name").',
        ),
        (
            '{"properties": {"a": {"$ref": "#/$defs/A"}}}',
            'Its reference "#/$defs/A" leads nowhere: write it as a JSON pointer into the same document ("#/$defs/Name").',
        ),
        (
            '{"$schema": "http://json-schema.org/draft-07/schema#"}',
            'It says that it is of "http://json-schema.org/draft-07/schema#": it must be of https://json-schema.org/draft/2020-12/schema.',
        ),
        ('{"items": {"$id": "x"}}', 'It has a part with a "$id" of its own: that may only stand at the top.'),
        ('{"items": ' * 100 + "{}" + "}" * 100, "It is nested more than 64 deep."),
        ("[" * 50_000, "It is nested more than 64 deep."),
        (" " * (MAX_SCHEMA_BYTES + 1), "It has 65537 bytes; at most 65536 are allowed."),
    ],
)
def test_schemas_that_cannot_be_used(text: str, problem: str) -> None:
    with pytest.raises(SchemaError) as raised:
        Schema(text)
    assert str(raised.value) == problem


def test_what_looks_like_a_reference_and_is_none() -> None:
    Schema(json.dumps({"properties": {"$ref": STRING, "$id": STRING}, "const": {"$ref": "http://x"}, "default": {"$id": "x"}}))


def test_the_schemas_of_an_action_say_which_part_is_wrong() -> None:
    with pytest.raises(SchemaError, match=r'^The schema of the input "ip" is not valid\. It is not JSON'):
        action_schemas(inputs={"ip": "{"})
    with pytest.raises(SchemaError, match=r"^The schemas have 80\d+ bytes together; at most 65536 are allowed\.$"):
        action_schemas(inputs={str(n): json.dumps({"title": "x" * 40_000}) for n in range(2)})
    with pytest.raises(SchemaError, match=r'^The optional input "a" is not among the inputs\.$'):
        action_schemas(optional_inputs=["a"])


def test_schemas_survive_the_contract() -> None:
    schemas = described(params=STRING, output=record(a=STRING), a=INTEGER, b=None, optional=("a",))
    assert schemas_from_proto(schemas_to_proto(schemas)) == schemas
    assert schemas_from_proto(schemas_to_proto(ActionSchemas())) == ActionSchemas()


HOSTILE = {
    "much of the same": {
        "$ref": "#/$defs/a",
        "$defs": {
            **{name: {"allOf": [{"$ref": f"#/$defs/{chr(ord(name) + 1)}"}] * 20} for name in "abcdefgh"},
            "i": {"type": "object"},
        },
    },
    "a circle": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]},
    "a pattern that takes for ever": {"type": "string", "pattern": "^(a+)+$"},
    "its properties by such a pattern": {"patternProperties": {"^(a+)+$": True}, "additionalProperties": False},
    "items that are compared with each other": items(record(a=STRING)) | {"uniqueItems": True},
}


@pytest.mark.parametrize("schema", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize(
    "value", ["a" * 40 + "!", {"a" * 40 + "!": 1}, [{"a": str(n)} for n in range(20_000)]], ids=["text", "object", "array"]
)
def test_hostile_schemas_end(schema: Any, value: Any) -> None:
    """Without a bound some of these take minutes: the test's own time limit is what fails then."""
    known = offered([offer("use", described(params=schema, x=schema, output=schema))])
    saga = (
        Saga("s").append(constant("x", value)).append(action("a", "use", reads=["x"])).append(action("b", "use", reads={"x": "a"}))
    )
    budget = Budget(10_000)
    check = check_edges(compile_graph(saga.build()), known, budget)
    params_problems(check.readers, known, Payload.json(value), budget)


def test_keywords_that_are_left_out_refuse_nothing() -> None:
    """Each of these is right only because of a keyword that is not looked at."""
    for schema in (
        {"not": {"pattern": "x"}},
        {"oneOf": [{"pattern": "a"}, {"pattern": "b"}]},
        {"if": {"pattern": "x"}, "then": False},
        {"type": "array", "contains": {"pattern": "x"}, "maxContains": 0},
        {"type": "object", "patternProperties": {"a": True}, "additionalProperties": False},
        {"unevaluatedProperties": False, "allOf": [{"patternProperties": {"a": True}}]},
    ):
        for value in ("abc", ["abc"], {"a": 1}):
            if "type" not in schema or isinstance(value, {"array": list, "object": dict}[str(schema["type"])]):
                assert Schema(json.dumps(schema)).violations(value, Budget(1000)) == []


def test_a_long_value_does_not_make_a_long_message() -> None:
    (message,) = Schema('{"type": "string"}').violations([1] * 10_000, Budget(1000))
    assert len(message) < 250
    assert message.endswith("is not of type 'string'")


def test_the_check_of_many_nodes_is_quick_where_they_are_alike() -> None:
    """Edges with the same schemas are compared once: the budget of an SEC node is enough for the largest saga."""
    saga = Saga("s").append(action("n0", "use", after=[]))
    for number in range(1, 2_000):
        saga.append(action(f"n{number}", "use", reads={"x": f"n{number - 1}"}))
    saga.append(action("last", "other", reads={"x": "n0"}))
    known = offered(
        [
            offer("use", described(output=record(a=STRING), x=record(a=STRING), optional=("x",))),
            offer("other", described(x=INTEGER)),
        ]
    )
    check = check_edges(compile_graph(saga.build()), known, Budget(100))
    assert [problem.partition(":")[0] for problem in check.problems] == [
        'Input "x" of node "last" is not what action "other" wants'
    ]
