"""Every way in which a definition can be wrong, and the sentence that says so, to the letter."""

from collections.abc import Callable
from datetime import datetime

import pytest
from sec_model import (
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
from sec_model.definition import MAX_INSTANT_US, MAX_WAIT_S
from sec_model.graph import MAX_DEPTH, MAX_NODES, MAX_PATH_LENGTH, is_name, name_rule
from sec_model.versions import ASKED_RULE

RULE = 'letters, digits, ".", "_" and "-" (at most 128, the first a letter or a digit)'


def node(name: str, *depends_on: str, reads: tuple[str, ...] = (), calls: str = "act") -> Node:
    return Node(name, ActionNode(calls), depends_on, tuple(Input(r, r) for r in reads))


def const(name: str, *depends_on: str) -> Node:
    return Node(name, ConstantNode(Payload.json(1)), depends_on)


def sub(name: str, *nodes: Node, after: tuple[str, ...] = (), params_from: str = "", saga: str = "inner") -> Node:
    return Node(name, SubsagaNode(Definition(saga, nodes), params_from), after)


def saga(*nodes: Node, name: str = "s") -> Definition:
    return Definition(name, nodes)


def problems(definition: Definition) -> list[str]:
    with pytest.raises(DefinitionError) as caught:
        compile_graph(definition)
    assert str(caught.value) == " ".join(caught.value.problems)
    return list(caught.value.problems)


CASES: dict[str, tuple[Definition, list[str]]] = {
    "no nodes": (saga(), ['The saga "s" has no nodes.']),
    "no nodes in a subsaga": (saga(node("a"), sub("b", after=("a",))), ['The subsaga "b" has no nodes.']),
    "duplicate name": (saga(node("a"), node("a")), ['The node name "a" is used twice in saga "s".']),
    "duplicate name in a subsaga": (
        saga(node("x"), sub("b", node("x"), node("x", "x"), after=("x",))),
        ['The node name "x" is used twice in subsaga "b".'],
    ),
    "cycle": (saga(node("a", "b"), node("b", "a")), ['The nodes "a", "b" of saga "s" depend on each other in a circle.']),
    "node that depends on itself": (saga(node("a", "a")), ['The node "a" of saga "s" depends on itself.']),
    "cycle with nodes before and behind it": (
        saga(node("start"), node("a", "start", "c"), node("b", "a"), node("c", "b"), node("d", "c"), node("end", "d")),
        ['The nodes "a", "b", "c" of saga "s" depend on each other in a circle.'],
    ),
    "cycle in a subsaga": (
        saga(sub("x", node("a", "b"), node("b", "a", "a"))),
        ['The nodes "x/a", "x/b" of subsaga "x" depend on each other in a circle.'],
    ),
    "edge to an unknown node": (saga(node("a", "b")), ['Node "a" depends on "b", which is not a node of saga "s".']),
    "edge out of a subsaga": (
        saga(node("a"), sub("x", node("b", "a"), after=("a",))),
        ['Node "x/b" depends on "a", which is not a node of subsaga "x".'],
    ),
    "edge into a subsaga": (
        saga(sub("x", node("b")), node("a", "x/b", "x")),
        ['Node "a" depends on "x/b", which is not a node of saga "s".'],
    ),
    "params from a node that is no ancestor": (
        saga(node("a"), sub("x", node("b"), params_from="a"), node("z", "a", "x")),
        ['Node "x" is a subsaga whose params come from "a", which is not one of its ancestors: let it depend on "a".'],
    ),
    "params from itself": (
        saga(sub("x", node("b"), params_from="x")),
        ['Node "x" is a subsaga whose params come from "x", which is not one of its ancestors: let it depend on "x".'],
    ),
    "params from an unknown node": (
        saga(sub("x", node("b"), params_from="a")),
        ['Node "x" is a subsaga whose params come from "a", which is not a node of saga "s".'],
    ),
    "params from its own node": (
        saga(sub("x", node("b"), params_from="b")),
        ['Node "x" is a subsaga whose params come from "b", which is not a node of saga "s".'],
    ),
    "reading a node that is no ancestor": (
        saga(node("a"), node("b", reads=("a",)), node("z", "a", "b")),
        ['Node "b" reads the output of "a", which is not one of its ancestors: let it depend on "a".'],
    ),
    "reading a descendant": (
        saga(node("a", reads=("b",)), node("b", "a")),
        ['Node "a" reads the output of "b", which is not one of its ancestors: let it depend on "b".'],
    ),
    "reading itself": (
        saga(node("a", reads=("a",))),
        ['Node "a" reads the output of "a", which is not one of its ancestors: let it depend on "a".'],
    ),
    "reading an unknown node": (
        saga(node("a", reads=("b",))),
        ['Node "a" reads the output of "b", which is not a node of saga "s".'],
    ),
    "reading out of a subsaga": (
        saga(node("a"), sub("x", node("b", reads=("a",)), after=("a",))),
        ['Node "x/b" reads the output of "a", which is not a node of subsaga "x".'],
    ),
    "two inputs of one name": (
        saga(node("a"), node("b", "a"), Node("c", ActionNode("act"), ("b",), (Input("n", "a"), Input("n", "b"), Input("m", "a")))),
        ['Node "c" has two inputs named "n".'],
    ),
    "a constant that reads": (
        saga(node("a"), Node("k", ConstantNode(Payload()), ("a",), (Input("a", "a"),))),
        ['Node "k" reads outputs, but only a node that calls an action can.'],
    ),
    "a subsaga that reads": (
        saga(node("a"), Node("x", SubsagaNode(saga(node("b"))), ("a",), (Input("a", "a"),))),
        ['Node "x" reads outputs, but only a node that calls an action can.'],
    ),
    "two final nodes": (
        saga(node("a"), node("b", "a"), node("c", "a")),
        ['The saga "s" must end in one final node, but nothing depends on any of "b", "c": add a node that depends on them.'],
    ),
    "two final nodes in a subsaga": (
        saga(sub("x", node("b"), node("c"))),
        [
            'The subsaga "x" must end in one final node, but nothing depends on any of "x/b", "x/c": add a node that depends on them.'
        ],
    ),
    "a name of a saga": (saga(node("a"), name="a saga"), [f'The name "a saga" of saga "a saga" is not valid: use {RULE}.']),
    "a name of a subsaga": (
        saga(sub("x", node("a"), saga="")),
        [f'The name "" of subsaga "x" is not valid: use {RULE}.'],
    ),
    "a name of a node": (saga(node("a/b")), [f'The node name "a/b" is not valid: use {RULE}.']),
    "an empty name of a node": (saga(sub("x", node(""))), [f'The node name "x/" is not valid: use {RULE}.']),
    "a name of an action": (
        saga(node("a", calls="call me")),
        [f'Node "a" calls the action "call me", which is not a valid name: use {ASKED_RULE}.'],
    ),
    "a path that is too long": (
        saga(sub("x" * 128, node("y" * 128))),
        [f'The path of node "{"x" * 128}/{"y" * 128}" is longer than 256 characters.'],
    ),
    "a retry policy": (
        saga(Node("a", ActionNode("act", retry=RetryPolicy(max_attempts=0)))),
        ['The retry policy of node "a" is not valid: max_attempts is 0; it must be between 1 and 1000000.'],
    ),
    "an undo retry policy": (
        saga(sub("x", Node("a", ActionNode("act", undo_retry=RetryPolicy(jitter=2.0, multiplier=0.5))))),
        [
            'The undo retry policy of node "x/a" is not valid: multiplier is 0.5; it must be between 1 and 1000.',
            'The undo retry policy of node "x/a" is not valid: jitter is 2.0; it must be between 0 and 1.',
        ],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_definition_is_told_in_a_sentence(case: str) -> None:
    definition, expected = CASES[case]
    assert problems(definition) == expected


@pytest.mark.parametrize(
    ("policy", "problem"),
    [
        (RetryPolicy(max_attempts=0), "max_attempts is 0; it must be between 1 and 1000000"),
        (RetryPolicy(max_attempts=1_000_001), "max_attempts is 1000001; it must be between 1 and 1000000"),
        (
            RetryPolicy(initial_backoff_s=0.0),
            "the backoff goes from 0.0 to 30.0 seconds; it must begin above 0, grow, and end by 86400",
        ),
        (
            RetryPolicy(initial_backoff_s=40.0),
            "the backoff goes from 40.0 to 30.0 seconds; it must begin above 0, grow, and end by 86400",
        ),
        (
            RetryPolicy(max_backoff_s=86_401.0),
            "the backoff goes from 0.1 to 86401.0 seconds; it must begin above 0, grow, and end by 86400",
        ),
        (
            RetryPolicy(initial_backoff_s=float("nan")),
            "the backoff goes from nan to 30.0 seconds; it must begin above 0, grow, and end by 86400",
        ),
        (RetryPolicy(multiplier=0.99), "multiplier is 0.99; it must be between 1 and 1000"),
        (RetryPolicy(multiplier=1001.0), "multiplier is 1001.0; it must be between 1 and 1000"),
        (RetryPolicy(jitter=-0.1), "jitter is -0.1; it must be between 0 and 1"),
        (RetryPolicy(jitter=float("nan")), "jitter is nan; it must be between 0 and 1"),
        (RetryPolicy(attempt_timeout_s=0.0), "attempt_timeout_s is 0.0; it must be between 0.001 and 86400"),
        (RetryPolicy(attempt_timeout_s=86_401.0), "attempt_timeout_s is 86401.0; it must be between 0.001 and 86400"),
        (RetryPolicy(heartbeat_timeout_s=0.5), "heartbeat_timeout_s is 0.5; it must be between 1 and 86400"),
        (RetryPolicy(overall_timeout_s=0.0), "overall_timeout_s is 0.0; it must be positive"),
        (RetryPolicy(overall_timeout_s=-1.0), "overall_timeout_s is -1.0; it must be positive"),
        (RetryPolicy(overall_timeout_s=float("inf")), "overall_timeout_s is inf; it must be positive"),
    ],
    ids=repr,
)
def test_a_bad_retry_policy(policy: RetryPolicy, problem: str) -> None:
    assert policy.problems() == [problem]
    assert problems(saga(Node("a", ActionNode("act", policy)))) == [f'The retry policy of node "a" is not valid: {problem}.']


@pytest.mark.parametrize(
    "policy",
    [
        RetryPolicy(),
        RetryPolicy(
            max_attempts=1, jitter=0.0, multiplier=1.0, initial_backoff_s=0.001, max_backoff_s=0.001, attempt_timeout_s=0.001
        ),
        RetryPolicy(1_000_000, 86_400.0, 86_400.0, 1000.0, 1.0, 86_400.0, 1e9),
    ],
    ids=repr,
)
def test_a_retry_policy_at_its_limits(policy: RetryPolicy) -> None:
    assert policy.problems() == []


@pytest.mark.parametrize("after_s", [0.0, -1.0, MAX_WAIT_S + 1.0, float("inf"), float("nan")])
def test_a_bad_deadline(after_s: float) -> None:
    problem = f"{after_s} seconds; it must be above 0 and at most {MAX_WAIT_S}"
    assert Deadline(after_s).problem() == problem
    for kind in (ActionNode("act", deadline=Deadline(after_s)), SignalNode(Deadline(after_s, OnDeadline.PAUSE))):
        assert problems(saga(sub("x", Node("a", kind)))) == [f'The deadline of node "x/a" is {problem}.']


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (TimerNode(), "has nothing to wait for: give it a time above 0 seconds, or an instant"),
        (TimerNode(1.0, 1), "has both a time and an instant to wait for: give one of them"),
        (TimerNode(-1.0), f"waits -1.0 seconds; it must be above 0 and at most {MAX_WAIT_S}"),
        (TimerNode(MAX_WAIT_S + 1.0), f"waits {MAX_WAIT_S + 1.0} seconds; it must be above 0 and at most {MAX_WAIT_S}"),
        (TimerNode(float("nan")), f"waits nan seconds; it must be above 0 and at most {MAX_WAIT_S}"),
        (TimerNode(until_us=-1), "waits until -1 microseconds since 1970; that must be an instant from 1970 to 9999"),
        (
            TimerNode(until_us=MAX_INSTANT_US + 1),
            f"waits until {MAX_INSTANT_US + 1} microseconds since 1970; that must be an instant from 1970 to 9999",
        ),
    ],
    ids=repr,
)
def test_a_bad_timer(bad: TimerNode, problem: str) -> None:
    assert problems(saga(sub("x", Node("a", bad)))) == [f'The timer "x/a" {problem}.']


def test_deadlines_and_timers_at_their_limits() -> None:
    kinds = (
        SignalNode(Deadline(MAX_WAIT_S)),
        TimerNode(MAX_WAIT_S),
        TimerNode(5e-324),
        TimerNode(until_us=1),
        TimerNode(until_us=MAX_INSTANT_US),
    )
    for kind in kinds:
        compile_graph(saga(Node("a", kind)))


def test_only_actions_read() -> None:
    for kind in (SignalNode(), TimerNode(1.0)):
        definition = saga(node("a"), Node("b", kind, ("a",), (Input("a", "a"),)))
        assert problems(definition) == ['Node "b" reads outputs, but only a node that calls an action can.']


# points of no return


def point(name: str, *depends_on: str, deadline: Deadline | None = None) -> Node:
    return Node(name, ActionNode("pay", undo=UndoPolicy.POINT_OF_NO_RETURN, deadline=deadline), depends_on)


def waiting(name: str, *depends_on: str, deadline: Deadline | None = None) -> Node:
    return Node(name, SignalNode(deadline), depends_on)


def beside(path: str, other: str) -> str:
    return f'Node "{path}" is a point of no return, but node "{other}" stands beside it and may still fail: let one depend on the other.'


def timed(path: str, where: str) -> str:
    return f'Node "{path}" is {where} point of no return, so that a deadline cannot make it fail: let its deadline pause the saga.'


FAIL, PAUSE = Deadline(5.0), Deadline(5.0, OnDeadline.PAUSE)
NO_RETURN: dict[str, tuple[Definition, list[str]]] = {
    "a node of its stage": (saga(point("p"), node("a"), node("z", "p", "a")), [beside("p", "a")]),
    "nodes of a branch, reached by free edges": (
        saga(node("first"), node("a", "first"), node("b", "a"), point("p", "first"), node("z", "b", "p")),
        [beside("p", "a"), beside("p", "b")],
    ),
    "a branch that comes together before it": (saga(node("a"), node("b"), point("p", "a", "b"), node("z", "p")), []),
    "stages behind it": (saga(point("p"), node("a", "p"), node("b", "p"), node("z", "a", "b")), []),
    "alone": (saga(point("p")), []),
    "a node beside the subsaga that it is in": (
        saga(node("a"), sub("x", node("b"), point("p", "b")), node("z", "a", "x")),
        [beside("x/p", "a")],
    ),
    "a subsaga beside it": (saga(point("p"), sub("x", node("b"), const("k", "b")), node("z", "p", "x")), [beside("p", "x/b")]),
    "a node beside it that needs no undo": (
        saga(point("p"), Node("a", ActionNode("look", undo=UndoPolicy.NONE_NEEDED)), node("z", "p", "a")),
        [beside("p", "a")],
    ),
    "two beside each other": (saga(point("p"), point("q"), node("z", "p", "q")), [beside("p", "q"), beside("q", "p")]),
    "one behind another": (saga(point("p"), point("q", "p")), []),
    "nodes beside the second": (saga(point("p"), point("q", "p"), node("a", "p"), node("z", "a", "q")), []),
    "a node beside both": (saga(point("p"), point("q", "p"), node("a"), node("z", "a", "q")), [beside("p", "a")]),
    "a signal that may fail beside it": (saga(point("p"), waiting("a", deadline=FAIL), node("z", "a", "p")), [beside("p", "a")]),
    "signals that cannot fail beside it": (
        saga(point("p"), waiting("a"), waiting("b", deadline=PAUSE), node("z", "a", "b", "p")),
        [],
    ),
    "timers and constants beside it": (
        saga(point("p"), Node("t", TimerNode(5.0)), const("k"), sub("x", const("k")), node("z", "t", "k", "x", "p")),
        [],
    ),
    "its own deadline": (saga(point("p", deadline=FAIL)), [timed("p", "a")]),
    "deadlines behind it": (
        saga(point("p"), Node("a", ActionNode("act", deadline=FAIL), ("p",)), sub("x", waiting("b", deadline=FAIL), after=("a",))),
        [timed("a", "behind a"), timed("x/b", "behind a")],
    ),
    "deadlines that pause": (saga(point("p", deadline=PAUSE), waiting("a", "p", deadline=PAUSE)), []),
    "a deadline before it": (
        saga(Node("a", ActionNode("act", deadline=FAIL)), waiting("b", "a", deadline=FAIL), point("p", "b")),
        [],
    ),
}


@pytest.mark.parametrize("case", NO_RETURN)
def test_what_stands_around_a_point_of_no_return(case: str) -> None:
    definition, expected = NO_RETURN[case]
    if expected:
        assert problems(definition) == expected
    else:
        compile_graph(definition)


def test_every_problem_is_told_at_once() -> None:
    definition = saga(
        node("a", "ghost"),
        node("a b"),
        sub("x", node("c", calls=""), node("d", "c", "d"), after=("a",)),
        node("z", "a", "x", "a b"),
        name="s!",
    )
    assert problems(definition) == [
        f'The name "s!" of saga "s!" is not valid: use {RULE}.',
        f'The node name "a b" is not valid: use {RULE}.',
        'Node "a" depends on "ghost", which is not a node of saga "s!".',
        f'Node "x/c" calls the action "", which is not a valid name: use {ASKED_RULE}.',
        'The node "x/d" of subsaga "x" depends on itself.',
    ]


def test_too_many_nodes() -> None:
    exactly = saga(*(node(f"n{i}", *([f"n{i - 1}"] if i else [])) for i in range(MAX_NODES)))
    assert len(compile_graph(exactly).nodes) == MAX_NODES
    inner = saga(*(node(f"m{i}") for i in range(MAX_NODES - 1)), name="inner")
    assert problems(saga(node("a"), Node("x", SubsagaNode(inner), ("a",))))[-1] == (
        f'Saga "s" has {MAX_NODES + 1} nodes; at most {MAX_NODES} are allowed.'
    )


def test_a_saga_beyond_the_limit_is_not_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is quadratic in the nodes must not be done before their number is known to be bounded."""

    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("sec_model.graph._ancestor_sets", never)
    many = saga(*(node(f"n{i}", *([f"n{i - 1}"] if i else [])) for i in range(MAX_NODES + 1)))
    assert problems(many) == [f'Saga "s" has {MAX_NODES + 1} nodes; at most {MAX_NODES} are allowed.']


def test_many_inputs_are_checked_in_linear_time() -> None:
    """A text that counts how often it is compared: with a list to count in it would be every input with every other."""

    class Counted(str):
        __slots__ = ()
        compared = 0

        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            Counted.compared += 1
            return str.__eq__(self, other)

    inputs = tuple(Input(Counted(f"i{i}"), "a") for i in range(2000))
    compile_graph(saga(node("a"), Node("b", ActionNode("act"), ("a",), inputs)))
    assert Counted.compared < 100_000


def nested(depth: int) -> Definition:
    definition = saga(node("a"))
    for _ in range(depth):
        definition = saga(Node("x", SubsagaNode(definition)))
    return definition


def test_subsagas_within_subsagas() -> None:
    assert "/".join(["x"] * MAX_DEPTH + ["a"]) in compile_graph(nested(MAX_DEPTH)).by_path
    path = "/".join(["x"] * (MAX_DEPTH + 1))
    assert problems(nested(MAX_DEPTH + 1)) == [f'The subsaga "{path}" is nested more than {MAX_DEPTH} deep.']
    assert problems(nested(900)) == [f'The subsaga "{path}" is nested more than {MAX_DEPTH} deep.']


def test_a_path_at_its_limit() -> None:
    definition = saga(sub("x" * 128, node("y" * (MAX_PATH_LENGTH - 129))))
    assert max(len(path) for path in compile_graph(definition).by_path) == MAX_PATH_LENGTH


@pytest.mark.parametrize("name", ["a", "Z", "0", "a.b_c-d", "9" * 128])
def test_good_names(name: str) -> None:
    assert is_name(name)
    assert name_rule() == RULE
    compile_graph(saga(node(name, calls=name)))
    compile_graph(saga(node("a", calls=f"{name[:120]}@2.1")))


@pytest.mark.parametrize("name", ["", ".a", "-a", "_a", "a b", "a/b", "a@b", "é", "a\n", "٣", "9" * 129])
def test_bad_names(name: str) -> None:
    assert not is_name(name)
    assert problems(saga(node(name))) == [f'The node name "{name}" is not valid: use {RULE}.']
    assert problems(saga(node("a"), name=name)) == [f'The name "{name}" of saga "{name}" is not valid: use {RULE}.']


@pytest.mark.parametrize("name", ["", "@a", "a b", "a/b", "a\n", "9" * 129])
def test_bad_action_names(name: str) -> None:
    assert problems(saga(node("a", calls=name))) == [
        f'Node "a" calls the action "{name}", which is not a valid name: use {ASKED_RULE}.'
    ]


# the builder


def test_an_empty_parallel_stage() -> None:
    builder = Saga("s").append(action("a", "act")).append_parallel().append(action("b", "act")).append_parallel()
    with pytest.raises(DefinitionError) as caught:
        builder.build()
    assert caught.value.problems == ('A parallel stage of saga "s" is empty.',) * 2


def test_an_empty_parallel_stage_of_a_subsaga() -> None:
    inner = Saga("inner").append(action("a", "act")).append_parallel()
    outer = Saga("outer").append(subsaga("x", inner)).append_parallel()
    with pytest.raises(DefinitionError) as caught:
        outer.build()
    assert caught.value.problems == ('A parallel stage of saga "inner" is empty.', 'A parallel stage of saga "outer" is empty.')


def test_more_problems_than_anybody_reads_are_counted() -> None:
    found = problems(saga(*(node("a") for _ in range(200))))
    assert len(found) == 101
    assert found[-1].startswith("There are ")


@pytest.mark.parametrize("name", ["", "x" * 257])
def test_bad_input_names(name: str) -> None:
    found = problems(saga(node("a"), Node("b", ActionNode("act"), ("a",), (Input(name, "a"),))))
    assert found == [f'Node "b" gives an input the name "{name[:256]}"; use 1 to 256 characters.']


def test_the_builder_checks() -> None:
    with pytest.raises(DefinitionError, match=r'^The node name "a" is used twice in saga "s"\.$'):
        Saga("s").append(action("a", "act")).append(action("a", "act")).build()


def test_definition_is_unchecked() -> None:
    assert Saga("not a name").unchecked() == Definition("not a name", ())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: action("a", "act", reads="hotel"), "reads='hotel' is a single string; give a list of names"),
        (lambda: action("a", "act", after="hotel"), "after='hotel' is a single string; give a list of names"),
        (lambda: constant("a", 1, after="hotel"), "after='hotel' is a single string; give a list of names"),
        (lambda: signal("a", after="hotel"), "after='hotel' is a single string; give a list of names"),
        (lambda: timer("a", 1, after="hotel"), "after='hotel' is a single string; give a list of names"),
    ],
)
def test_a_single_string_is_not_a_list(make: Callable[[], object], message: str) -> None:
    with pytest.raises(TypeError) as caught:
        make()
    assert str(caught.value) == message


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, object(), b"bytes"])
def test_a_constant_must_be_json(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        constant("a", value)


def test_an_instant_needs_its_time_zone() -> None:
    with pytest.raises(
        ValueError, match=r'^The timer "a" waits until 2030-01-01 09:00:00, which has no time zone: give one, such as'
    ):
        timer("a", datetime(2030, 1, 1, 9))
