"""Definitions as documents: what they mean, and the sentence for everything that is wrong with one."""

import datetime
from typing import Any

import pytest
from sec_model import Definition, DefinitionError, RetryPolicy, Saga, action, constant, subsaga
from sec_model.document import definition_from_document

KEYS_OF_ACTION = "action, after, label, name, reads, retry, undo_retry"


def doc(*nodes: Any, name: Any = "s") -> dict[str, Any]:
    return {"name": name, "nodes": list(nodes)}


def test_stages_and_kinds() -> None:
    document = doc(
        {"name": "hotel", "action": "book_hotel"},
        {
            "parallel": [
                {"name": "car", "action": "rent_car", "retry": {"max_attempts": 3}, "label": "A car"},
                {"name": "flight", "action": "book_flight", "undo_retry": {"jitter": 0, "overall_timeout_s": 9}},
                {"name": "k", "constant": {"a": [1, None]}},
                {"name": "alloc", "subsaga": {"nodes": [{"name": "id", "action": "x"}]}, "params_from": "hotel"},
            ]
        },
        {"name": "confirm", "action": "confirm_trip", "reads": ["hotel", "car"]},
        {"name": "bill", "action": "bill", "reads": {"where": "hotel"}, "after": ["confirm", "hotel"]},
        name="trip",
    )
    expected = (
        Saga("trip")
        .append(action("hotel", "book_hotel"))
        .append_parallel(
            action("car", "rent_car", retry=RetryPolicy(max_attempts=3), label="A car"),
            action("flight", "book_flight", undo_retry=RetryPolicy(max_attempts=20, jitter=0.0, overall_timeout_s=9.0)),
            constant("k", {"a": [1, None]}),
            subsaga("alloc", Saga("alloc").append(action("id", "x")), params_from="hotel"),
        )
        .append(action("confirm", "confirm_trip", reads=["hotel", "car"]))
        .append(action("bill", "bill", reads={"where": "hotel"}, after=["confirm", "hotel"]))
    )
    assert definition_from_document(document) == expected.build()


def test_a_subsaga_may_have_a_name_of_its_own() -> None:
    document = doc({"name": "x", "subsaga": {"name": "inner", "nodes": [{"name": "a", "action": "act"}]}, "label": "X"})
    assert (
        definition_from_document(document)
        == Saga("s").append(subsaga("x", Saga("inner").append(action("a", "act")), label="X")).build()
    )


@pytest.mark.parametrize("constant_value", [None, False, 0, "", [], {}])
def test_any_json_is_a_constant(constant_value: Any) -> None:
    assert definition_from_document(doc({"name": "k", "constant": constant_value})) == (
        Saga("s").append(constant("k", constant_value)).build()
    )


def test_empty_keys_have_their_defaults() -> None:
    document = doc({"name": "a", "action": "act", "reads": [], "after": None, "retry": None, "undo_retry": {}})
    assert definition_from_document(document) == Saga("s").append(action("a", "act")).build()


def act(**more: Any) -> dict[str, Any]:
    return {"name": "a", "action": "act", **more}


CASES: dict[str, tuple[Any, list[str]]] = {
    "no mapping": (["a"], ["The document must be a mapping with the keys name and nodes."]),
    "nothing": (None, ["The document must be a mapping with the keys name and nodes."]),
    "no name": ({"nodes": [act()]}, ["The document needs a name."]),
    "an empty name": (doc(act(), name=""), ["The document needs a name."]),
    "a name that is no string": (doc(act(), name=5), ["The document needs a name."]),
    "no nodes": ({"name": "s"}, ['The document needs a list "nodes" with at least one node.']),
    "an empty list of nodes": (doc(), ['The document needs a list "nodes" with at least one node.']),
    "nodes that are no list": (
        {"name": "s", "nodes": {"a": act()}},
        ['The document needs a list "nodes" with at least one node.'],
    ),
    "neither name nor nodes": ({}, ["The document needs a name.", 'The document needs a list "nodes" with at least one node.']),
    "an unknown key": (doc(act()) | {"node": 1}, ['The document has an unknown key "node"; known are name, nodes.']),
    "a node that is no mapping": (
        doc("a", act()),
        ["Item 1 of the document must be a mapping with a name and one of action, constant, subsaga."],
    ),
    "a node without a name": (doc(act(), {"action": "act"}), ["Item 2 of the document needs a name (a string)."]),
    "a node whose name is no string": (doc({"name": 5, "action": "act"}), ["Item 1 of the document needs a name (a string)."]),
    "a node of no kind": (doc({"name": "a"}), ['Node "a" must have one of action, constant, subsaga; it has none.']),
    "a node of two kinds": (
        doc(act(constant=1)),
        ['Node "a" must have one of action, constant, subsaga; it has action and constant.'],
    ),
    "a node of three kinds": (
        doc(act(constant=1, subsaga={})),
        ['Node "a" must have one of action, constant, subsaga; it has action and constant and subsaga.'],
    ),
    "an unknown key of an action": (doc(act(read=["b"])), [f'Node "a" has an unknown key "read"; known are {KEYS_OF_ACTION}.']),
    "an unknown key of a constant": (
        doc({"name": "a", "constant": 1, "retry": {}}),
        ['Node "a" has an unknown key "retry"; known are after, constant, label, name.'],
    ),
    "an unknown key of a subsaga": (
        doc({"name": "a", "subsaga": doc(act()), "reads": []}),
        ['Node "a" has an unknown key "reads"; known are after, label, name, params_from, subsaga.'],
    ),
    "a key that is no string": (doc(act() | {5: 6}), [f'Node "a" has an unknown key "5"; known are {KEYS_OF_ACTION}.']),
    "an empty parallel stage": (
        doc(act(), {"parallel": []}),
        ['Item 2 of the document has an empty parallel stage: "parallel" must be a list of nodes.'],
    ),
    "a parallel stage that is no list": (
        doc({"parallel": act()}),
        ['Item 1 of the document has an empty parallel stage: "parallel" must be a list of nodes.'],
    ),
    "an unknown key of a stage": (
        doc({"parallel": [act()], "name": "x"}),
        ['Item 1 of the document has an unknown key "name"; known are parallel.'],
    ),
    "a node of a stage that is no mapping": (
        doc({"parallel": [act(), 5]}),
        ["Node 2 of item 1 of the document must be a mapping with a name and one of action, constant, subsaga."],
    ),
    "a stage of nothing but problems": (
        doc({"parallel": [{"name": "a"}]}),
        ['Node "a" must have one of action, constant, subsaga; it has none.'],
    ),
    "a stage of nothing but problems in a subsaga": (
        doc({"name": "x", "subsaga": {"nodes": [{"parallel": [{"name": "a"}]}]}}),
        ['Node "a" must have one of action, constant, subsaga; it has none.'],
    ),
    "an action without a name": (doc({"name": "a", "action": None}), ['Node "a": "action" must be a string.']),
    "an action whose name is a list": (doc({"name": "a", "action": ["act"]}), ['Node "a": "action" must be a string.']),
    "a label that is no string": (doc(act(label=None)), ['Node "a": "label" must be a string.']),
    "params from no string": (
        doc({"name": "x", "subsaga": doc(act()), "params_from": None}),
        ['Node "x": "params_from" must be a string.'],
    ),
    "edges that are no list": (doc(act(after="b")), ['Node "a": "after" must be a list of names.']),
    "edges that are no names": (doc(act(after=[1])), ['Node "a": "after" must be a list of names.']),
    "reads that are no list": (doc(act(reads="b")), ['Node "a": "reads" must be a list of names.']),
    "reads that are no names": (doc(act(reads=[["b"]])), ['Node "a": "reads" must be a list of names.']),
    "a constant that is no JSON": (
        doc({"name": "a", "constant": datetime.date(2024, 1, 1)}),
        ['Node "a": the constant cannot be written as JSON (Object of type date is not JSON serializable).'],
    ),
    "a constant that is no number": (
        doc({"name": "a", "constant": float("nan")}),
        ['Node "a": the constant cannot be written as JSON (Out of range float values are not JSON compliant).'],
    ),
    "a policy that is no mapping": (doc(act(retry=3)), ['Node "a": a retry policy must be a mapping.']),
    "an unknown key of a policy": (
        doc(act(retry={"attempts": 3})),
        [
            'The retry policy of node "a" has an unknown key "attempts"; known are attempt_timeout_s, initial_backoff_s, jitter, '
            "max_attempts, max_backoff_s, multiplier, overall_timeout_s."
        ],
    ),
    "a policy with words": (doc(act(undo_retry={"jitter": "half"})), ['Node "a": jitter must be a number.']),
    "a policy with half an attempt": (doc(act(retry={"max_attempts": 1.5})), ['Node "a": max_attempts must be a whole number.']),
    "a policy with a truth": (doc(act(retry={"multiplier": True})), ['Node "a": multiplier must be a number.']),
    "a subsaga that is no mapping": (
        doc({"name": "x", "subsaga": []}),
        ['The subsaga "x" must be a mapping with the keys name and nodes.'],
    ),
    "a subsaga without nodes": (
        doc({"name": "x", "subsaga": {"nodes": []}}),
        ['The subsaga "x" needs a list "nodes" with at least one node.'],
    ),
    "a node in a subsaga": (
        doc({"name": "x", "subsaga": {"nodes": [5]}}),
        ['Item 1 of the subsaga "x" must be a mapping with a name and one of action, constant, subsaga.'],
    ),
    "several": (
        doc(5, act(label=1, after="x"), {"parallel": []}, name=""),
        [
            "The document needs a name.",
            "Item 1 of the document must be a mapping with a name and one of action, constant, subsaga.",
            'Node "a": "after" must be a list of names.',
            'Node "a": "label" must be a string.',
            'Item 3 of the document has an empty parallel stage: "parallel" must be a list of nodes.',
        ],
    ),
    # Sound in form: then the rules of the graph are told.
    "a wrong graph": (
        doc(act(), act(), {"name": "b", "action": "act", "reads": ["ghost"]}),
        ['The node name "a" is used twice in saga "s".'],
    ),
    "a wrong policy": (
        doc(act(retry={"max_attempts": 0})),
        ['The retry policy of node "a" is not valid: max_attempts is 0; it must be between 1 and 1000000.'],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_document_is_told_in_sentences(case: str) -> None:
    document, expected = CASES[case]
    with pytest.raises(DefinitionError) as caught:
        definition_from_document(document)
    assert list(caught.value.problems) == expected


def test_a_document_may_be_any_mapping() -> None:
    class Frozen(dict[str, Any]):
        def __setitem__(self, *_: object) -> None:
            raise AssertionError("the document is read only")

    assert isinstance(definition_from_document(Frozen(doc(act()))), Definition)
