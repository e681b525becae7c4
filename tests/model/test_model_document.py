"""Definitions as documents: what they mean, and the sentence for everything that is wrong with one."""

import datetime
import json
from typing import Any

import pytest
import yaml
from sec_model import (
    Deadline,
    Definition,
    DefinitionError,
    OnDeadline,
    RetryPolicy,
    Saga,
    UndoPolicy,
    action,
    constant,
    signal,
    subsaga,
    timer,
)
from sec_model.document import definition_from_document

KEYS_OF_ACTION = "action, after, deadline, label, name, reads, retry, undo, undo_retry"


def what_json_says_of(value: Any) -> str:
    """Which differs between versions of Python."""
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        json.dumps(value, allow_nan=False)
    return str(raised.value)


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


def test_policies_deadlines_signals_and_timers() -> None:
    document = """
        name: order
        nodes:
          - {name: approval, signal: {deadline: 86400}, label: The boss}
          - {name: news, signal: {}, after: []}
          - {name: more_news, signal: }
          - {name: cool_off, timer: 0.5}
          - {name: opening, timer: 2030-01-01T09:00:00Z}
          - {name: again, timer: "2030-01-01T10:00:00+01:00"}
          - {name: look, action: look, undo: none_needed, deadline: 2}
          - {name: mail, action: mail, undo: confirm, deadline: {after_s: 3, then: fail}}
          - {name: print, action: print, undo: manual, deadline: {after_s: 4}, after: [approval, mail]}
          - {name: pay, action: pay, undo: point_of_no_return}
          - {name: ship, action: ship, undo: action, deadline: {after_s: 60, then: pause}}
    """
    nine = datetime.datetime(2030, 1, 1, 9, tzinfo=datetime.UTC)
    expected = (
        Saga("order")
        .append(signal("approval", deadline=86400, label="The boss"))
        .append(signal("news", after=[]))
        .append(signal("more_news"))
        .append(timer("cool_off", 0.5))
        .append(timer("opening", nine))
        .append(timer("again", nine))
        .append(action("look", "look", undo=UndoPolicy.NONE_NEEDED, deadline=2))
        .append(action("mail", "mail", undo=UndoPolicy.CONFIRM, deadline=Deadline(3)))
        .append(action("print", "print", undo=UndoPolicy.MANUAL, deadline=Deadline(4), after=["approval", "mail"]))
        .append(action("pay", "pay", undo=UndoPolicy.POINT_OF_NO_RETURN))
        .append(action("ship", "ship", deadline=Deadline(60, OnDeadline.PAUSE)))
    )
    assert definition_from_document(yaml.safe_load(document)) == expected.build()


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
        ["Item 1 of the document must be a mapping with a name and one of action, constant, signal, timer, subsaga."],
    ),
    "a node without a name": (doc(act(), {"action": "act"}), ["Item 2 of the document needs a name (a string)."]),
    "a node whose name is no string": (doc({"name": 5, "action": "act"}), ["Item 1 of the document needs a name (a string)."]),
    "a node of no kind": (doc({"name": "a"}), ['Node "a" must have one of action, constant, signal, timer, subsaga; it has none.']),
    "a node of two kinds": (
        doc(act(constant=1)),
        ['Node "a" must have one of action, constant, signal, timer, subsaga; it has action and constant.'],
    ),
    "a node of three kinds": (
        doc(act(constant=1, subsaga={})),
        ['Node "a" must have one of action, constant, signal, timer, subsaga; it has action and constant and subsaga.'],
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
        ["Node 2 of item 1 of the document must be a mapping with a name and one of action, constant, signal, timer, subsaga."],
    ),
    "a stage of nothing but problems": (
        doc({"parallel": [{"name": "a"}]}),
        ['Node "a" must have one of action, constant, signal, timer, subsaga; it has none.'],
    ),
    "a stage of nothing but problems in a subsaga": (
        doc({"name": "x", "subsaga": {"nodes": [{"parallel": [{"name": "a"}]}]}}),
        ['Node "a" must have one of action, constant, signal, timer, subsaga; it has none.'],
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
        [f'Node "a": the constant cannot be written as JSON ({what_json_says_of(float("nan"))}).'],
    ),
    "a policy that is no mapping": (doc(act(retry=3)), ['Node "a": a retry policy must be a mapping.']),
    "an unknown key of a policy": (
        doc(act(retry={"attempts": 3})),
        [
            'The retry policy of node "a" has an unknown key "attempts"; known are attempt_timeout_s, heartbeat_timeout_s, initial_backoff_s, jitter, '
            "max_attempts, max_backoff_s, multiplier, overall_timeout_s."
        ],
    ),
    "a policy with words": (doc(act(undo_retry={"jitter": "half"})), ['Node "a": jitter must be a number.']),
    "a policy with half an attempt": (doc(act(retry={"max_attempts": 1.5})), ['Node "a": max_attempts must be a whole number.']),
    "a policy with a truth": (doc(act(retry={"multiplier": True})), ['Node "a": multiplier must be a number.']),
    "an undo policy that does not exist": (
        doc(act(undo="never")),
        ['Node "a": "undo" must be one of action, none_needed, confirm, manual, point_of_no_return, not "never".'],
    ),
    "a deadline in words": (
        doc(act(deadline="soon")),
        ['Node "a": "deadline" must be a number of seconds, or a mapping with after_s and then.'],
    ),
    "a deadline that is a truth": (
        doc(act(deadline=True)),
        ['Node "a": "deadline" must be a number of seconds, or a mapping with after_s and then.'],
    ),
    "a deadline without a time": (
        doc(act(deadline={"then": "pause"})),
        ['Node "a": "deadline" must be a number of seconds, or a mapping with after_s and then.'],
    ),
    "an unknown key of a deadline": (
        doc({"name": "a", "signal": {"deadline": {"after_s": 5, "than": "pause"}}}),
        ['The deadline of node "a" has an unknown key "than"; known are after_s, then.'],
    ),
    "a consequence that does not exist": (
        doc(act(deadline={"after_s": 5, "then": "abort"})),
        ['Node "a": "then" must be one of fail, pause, not "abort".'],
    ),
    "a signal that is no mapping": (
        doc({"name": "a", "signal": 86400}),
        ['Node "a": "signal" must be a mapping, which may have a deadline: {}.'],
    ),
    "an unknown key of a signal": (
        doc({"name": "a", "signal": {"timeout": 5}}),
        ['The signal of node "a" has an unknown key "timeout"; known are deadline.'],
    ),
    "a deadline beside a signal": (
        doc({"name": "a", "signal": {}, "deadline": 5}),
        ['Node "a" has an unknown key "deadline"; known are after, label, name, signal.'],
    ),
    "a timer in words": (
        doc({"name": "a", "timer": "soon"}),
        ['Node "a": "timer" must be a number of seconds, or an instant with its time zone such as 2030-01-01T09:00:00Z.'],
    ),
    "an instant without its time zone": (
        doc({"name": "a", "timer": datetime.datetime(2030, 1, 1, 9)}),
        ['Node "a": "timer" must be a number of seconds, or an instant with its time zone such as 2030-01-01T09:00:00Z.'],
    ),
    "a day": (
        doc({"name": "a", "timer": datetime.date(2030, 1, 1)}),
        ['Node "a": "timer" must be a number of seconds, or an instant with its time zone such as 2030-01-01T09:00:00Z.'],
    ),
    "an unknown key of a timer": (
        doc({"name": "a", "timer": 5, "reads": []}),
        ['Node "a" has an unknown key "reads"; known are after, label, name, timer.'],
    ),
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
        ['Item 1 of the subsaga "x" must be a mapping with a name and one of action, constant, signal, timer, subsaga.'],
    ),
    "several": (
        doc(5, act(label=1, after="x"), {"parallel": []}, name=""),
        [
            "The document needs a name.",
            "Item 1 of the document must be a mapping with a name and one of action, constant, signal, timer, subsaga.",
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
    "a timer that waits for nothing": (
        doc({"name": "a", "timer": 0}),
        ['The timer "a" has nothing to wait for: give it a time above 0 seconds, or an instant.'],
    ),
    "a timer beyond all numbers": (
        doc({"name": "a", "timer": 10**400}),
        ['The timer "a" waits inf seconds; it must be above 0 and at most 3153600000.'],
    ),
    "a deadline beyond all numbers": (
        doc(act(deadline=10**400)),
        ['The deadline of node "a" is inf seconds; it must be above 0 and at most 3153600000.'],
    ),
    "a deadline that is past at once": (
        doc({"name": "a", "signal": {"deadline": 0}}),
        ['The deadline of node "a" is 0.0 seconds; it must be above 0 and at most 3153600000.'],
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
