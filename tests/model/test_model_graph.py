"""What a definition becomes: the builder's stages and edges, and the flat graph with its subsagas inlined."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from model_strategies import definitions
from sec_model import (
    ActionNode,
    ConstantNode,
    Deadline,
    Definition,
    Graph,
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
from sec_model.graph import GraphNode, NodeKind, topological_order


def parents(graph: Graph) -> dict[str, list[str]]:
    return {n.path: [graph.nodes[p].path for p in n.parents] for n in graph.nodes}


def node(graph: Graph, path: str) -> GraphNode:
    return next(n for n in graph.nodes if n.path == path)


# the builder


def test_stages_follow_each_other() -> None:
    saga = Saga("trip")
    saga.append(action("hotel", "book_hotel"))
    saga.append_parallel(action("car", "rent_car"), action("flight", "book_flight"))
    saga.append(action("confirm", "confirm_trip", reads=["hotel", "car"], label="Tell them"))
    assert saga.build() == Definition(
        "trip",
        (
            Node("hotel", ActionNode("book_hotel")),
            Node("car", ActionNode("rent_car"), ("hotel",)),
            Node("flight", ActionNode("book_flight"), ("hotel",)),
            Node(
                "confirm",
                ActionNode("confirm_trip"),
                ("car", "flight"),
                (Input("hotel", "hotel"), Input("car", "car")),
                "Tell them",
            ),
        ),
    )


def test_edges_instead_of_stages() -> None:
    saga = Saga("s").append(action("a", "x")).append(action("b", "x", after=[])).append(action("c", "x"))
    saga.append(constant("k", 1, after=["a", "c"])).append(subsaga("x", Saga("i").append(action("d", "x")), after=["k"]))
    definition = saga.build()
    assert [n.depends_on for n in definition.nodes] == [(), (), ("b",), ("a", "c"), ("k",)]


def test_reads_can_rename() -> None:
    saga = Saga("s").append(action("a", "x")).append(action("b", "x", reads={"where": "a"}))
    assert saga.build().nodes[1].inputs == (Input("where", "a"),)


def test_policies_of_a_node() -> None:
    retry, undo_retry = RetryPolicy(max_attempts=3), RetryPolicy(max_attempts=4)
    saga = Saga("s").append(action("a", "x", retry=retry, undo_retry=undo_retry)).append(action("b", "x"))
    assert [n.kind for n in saga.build().nodes] == [
        ActionNode("x", retry, undo_retry),
        ActionNode("x", RetryPolicy(), RetryPolicy(max_attempts=20)),
    ]


def test_undo_policies_and_deadlines_of_a_node() -> None:
    saga = (
        Saga("s")
        .append(action("a", "x", undo=UndoPolicy.MANUAL, deadline=5))
        .append(action("b", "x", deadline=timedelta(minutes=1)))
        .append(action("c", "x", deadline=Deadline(7, OnDeadline.PAUSE)))
    )
    assert [n.kind for n in saga.build().nodes] == [
        ActionNode("x", undo=UndoPolicy.MANUAL, deadline=Deadline(5.0)),
        ActionNode("x", deadline=Deadline(60.0)),
        ActionNode("x", deadline=Deadline(7, OnDeadline.PAUSE)),
    ]


def test_signals_and_timers() -> None:
    noon = datetime(2030, 1, 1, 13, tzinfo=timezone(timedelta(hours=1)))
    saga = Saga("s").append(signal("a")).append(signal("b", deadline=timedelta(days=1), after=[], label="B"))
    saga.append(timer("c", 0.25)).append(timer("d", timedelta(minutes=1), after=["a"], label="D"))
    saga.append_parallel(timer("e", noon, after=["c", "d"]))
    assert saga.build().nodes == (
        Node("a", SignalNode()),
        Node("b", SignalNode(Deadline(86_400.0)), label="B"),
        Node("c", TimerNode(after_s=0.25), ("b",)),
        Node("d", TimerNode(after_s=60.0), ("a",), label="D"),
        Node("e", TimerNode(until_us=1_893_499_200_000_000), ("c", "d")),
    )
    assert datetime.fromtimestamp(1_893_499_200, UTC) == noon


def test_constants_are_json_or_payloads() -> None:
    saga = Saga("s").append(constant("a", {"ä": [1, None]})).append(constant("b", Payload("text/plain", b"\xff"), label="B"))
    definition = saga.build()
    assert definition.nodes[0] == Node("a", ConstantNode(Payload("application/json", '{"ä":[1,null]}'.encode())))
    assert definition.nodes[1] == Node("b", ConstantNode(Payload("text/plain", b"\xff")), ("a",), label="B")


def test_a_subsaga_is_a_builder_or_a_definition() -> None:
    inner = Saga("inner").append(action("a", "x"))
    one = Saga("s").append(subsaga("x", inner, label="X")).build()
    assert one == Saga("s").append(subsaga("x", inner.build(), label="X")).build()
    assert one.nodes == (Node("x", SubsagaNode(inner.build()), label="X"),)


@pytest.mark.parametrize(
    ("payload", "value"),
    [
        (Payload.json({"a": 1}), {"a": 1}),
        (Payload("", b"[1]"), [1]),
        (Payload(), None),
        (Payload("application/json", b""), None),
        (Payload("text/plain", b"x"), b"x"),
        (Payload("text/plain", b""), b""),
    ],
)
def test_value_of_a_payload(payload: Payload, value: object) -> None:
    assert payload.value() == value


# the flat graph


def test_a_plain_graph() -> None:
    graph = compile_graph(
        Saga("s")
        .append(action("a", "x", label="A"))
        .append_parallel(action("b", "y"), constant("k", 1))
        .append(action("c", "x", reads={"in": "a", "const": "k"}))
        .build()
    )
    assert graph.name == "s"
    assert parents(graph) == {"a": [], "b": ["a"], "k": ["a"], "c": ["b", "k"]}
    assert [n.children for n in graph.nodes] == [(1, 2), (3,), (3,), ()]
    assert [n.rank for n in graph.nodes] == [0, 1, 1, 2]
    assert [n.label for n in graph.nodes] == ["A", "y", "k", "x"], "an action is labelled by its name, all else by the node's"
    assert [n.instant for n in graph.nodes] == [False, False, True, False]
    assert graph.nodes[3].inputs == (("in", 0), ("const", 2))
    assert graph.nodes[2].constant == Payload.json(1)
    assert graph.nodes[0].action == ActionNode("x")
    assert graph.final == 3
    assert graph.by_path == {"a": 0, "b": 1, "k": 2, "c": 3}
    assert graph.index_of("k") == 2
    assert graph.action_names() == {"x", "y"}
    with pytest.raises(KeyError):
        graph.index_of("ghost")


def test_nodes_that_wait() -> None:
    graph = compile_graph(
        Saga("s").append(signal("a", deadline=5)).append(timer("b", 6, label="B")).append(action("c", "x", deadline=7)).build()
    )
    assert [(n.kind, n.label) for n in graph.nodes] == [(NodeKind.SIGNAL, "a"), (NodeKind.TIMER, "B"), (NodeKind.ACTION, "x")]
    assert [(n.waits, n.instant, n.needs_no_undo) for n in graph.nodes] == [
        (True, False, True),
        (True, False, True),
        (False, False, False),
    ]
    assert [n.deadline for n in graph.nodes] == [Deadline(5.0), None, Deadline(7.0)]
    assert [n.timer for n in graph.nodes] == [None, TimerNode(after_s=6.0), None]
    assert graph.action_names() == {"x"}


def test_what_an_undo_policy_means() -> None:
    def of(undo: UndoPolicy) -> set[str]:
        (node,) = compile_graph(Saga("s").append(action("a", "x", undo=undo)).build()).nodes
        said = ("needs_no_undo", "has_undo_action", "undone_by_hand", "needs_confirmation", "point_of_no_return", "never_given_up")
        return {word for word in said if getattr(node, word)}

    assert {undo: of(undo) for undo in UndoPolicy} == {
        UndoPolicy.ACTION: {"has_undo_action"},
        UndoPolicy.NONE_NEEDED: {"needs_no_undo"},
        UndoPolicy.CONFIRM: {"undone_by_hand", "needs_confirmation"},
        UndoPolicy.MANUAL: {"undone_by_hand"},
        UndoPolicy.POINT_OF_NO_RETURN: {"point_of_no_return", "never_given_up"},
    }


def test_what_stands_behind_a_point_of_no_return_only_goes_forward() -> None:
    inner = Saga("inner").append(action("in", "x")).append(action("pay", "pay", undo=UndoPolicy.POINT_OF_NO_RETURN))
    graph = compile_graph(
        Saga("s")
        .append(action("before", "x"))
        .append_parallel(subsaga("sub", inner), timer("beside", 5))
        .append(action("again", "pay", undo=UndoPolicy.POINT_OF_NO_RETURN))
        .append(signal("last"))
        .build()
    )
    assert {n.path for n in graph.nodes if n.forward_only} == {"sub", "again", "last"}
    assert {n.path for n in graph.nodes if n.never_given_up} == {"sub", "sub/pay", "again", "last"}
    assert [graph.nodes[point].path for point in graph.points_of_no_return] == ["sub/pay", "again"]


def test_a_subsaga_is_inlined_between_a_start_and_an_end() -> None:
    inner = (
        Saga("inner").append(action("id", "x")).append_parallel(action("ip", "x"), action("disk", "x")).append(action("sum", "x"))
    )
    saga = (
        Saga("s")
        .append(action("a", "x"))
        .append(subsaga("alloc", inner, params_from="a"))
        .append(action("z", "y", reads=["alloc"]))
    )
    graph = compile_graph(saga.build())
    assert parents(graph) == {
        "a": [],
        "alloc": ["alloc/sum"],
        "alloc/": ["a"],
        "alloc/id": ["alloc/"],
        "alloc/ip": ["alloc/id"],
        "alloc/disk": ["alloc/id"],
        "alloc/sum": ["alloc/ip", "alloc/disk"],
        "z": ["alloc"],
    }
    end, start = node(graph, "alloc"), node(graph, "alloc/")
    assert (end.kind, start.kind) == (NodeKind.SUBSAGA_END, NodeKind.SUBSAGA_START)
    assert start.index == end.index + 1, "the status relies on it"
    assert end.instant
    assert start.instant
    assert (end.rank, start.rank) == (1, 1)
    assert [node(graph, f"alloc/{p}").rank for p in ("id", "ip", "disk", "sum")] == [0, 1, 1, 2], "ranks begin anew in a subsaga"
    assert end.output_of == graph.index_of("alloc/sum")
    assert {n.path for n in graph.nodes if n.params_of == graph.index_of("a")} == {
        "alloc/id",
        "alloc/ip",
        "alloc/disk",
        "alloc/sum",
    }
    assert end.params_of is None
    assert node(graph, "z").inputs == (("alloc", end.index),)
    assert "alloc/" not in graph.by_path
    assert graph.action_names() == {"x", "y"}


def test_params_are_those_of_the_saga_around_unless_they_come_from_a_node() -> None:
    inmost = Saga("inmost").append(action("c", "x"))
    inner = Saga("inner").append(action("b", "x")).append(subsaga("same", inmost)).append(subsaga("own", inmost, params_from="b"))
    graph = compile_graph(Saga("s").append(action("a", "x")).append(subsaga("in", inner, params_from="a")).build())
    a, b = graph.index_of("a"), graph.index_of("in/b")
    assert node(graph, "a").params_of is None
    assert node(graph, "in/b").params_of == a
    assert node(graph, "in/same/c").params_of == a
    assert node(graph, "in/own/c").params_of == b
    plain = compile_graph(Saga("s").append(subsaga("in", inmost)).build())
    assert node(plain, "in/c").params_of is None


def test_outputs_of_subsagas_that_end_in_one_another() -> None:
    inner = Saga("inner").append(action("c", "x"))
    outer = Saga("outer").append(action("b", "x")).append(subsaga("in", inner))
    graph = compile_graph(Saga("s").append(subsaga("out", outer)).build())
    assert graph.final == graph.index_of("out")
    assert node(graph, "out").output_of == graph.index_of("out/in")
    assert node(graph, "out/in").output_of == graph.index_of("out/in/c")


def test_every_subsaga_has_a_name_space_of_its_own() -> None:
    inner = Saga("inner").append(action("a", "x")).append(action("b", "x", reads=["a"]))
    graph = compile_graph(
        Saga("s")
        .append(action("a", "x"))
        .append_parallel(subsaga("x", inner), subsaga("y", inner))
        .append(action("b", "x", reads=["a"]))
        .build()
    )
    assert set(graph.by_path) == {"a", "x", "x/a", "x/b", "y", "y/a", "y/b", "b"}
    assert node(graph, "x/b").inputs == (("a", graph.index_of("x/a")),)
    assert node(graph, "y/b").inputs == (("a", graph.index_of("y/a")),)
    assert node(graph, "b").inputs == (("a", graph.index_of("a")),)


def test_nodes_may_stand_before_their_parents() -> None:
    """The order of insertion is what people see; it says nothing of what comes first."""
    inner = Definition("i", (Node("d", ActionNode("x"), ("c",)), Node("c", ActionNode("x"))))
    definition = Definition(
        "s",
        (
            Node("z", ActionNode("x"), ("sub", "a"), (Input("a", "a"),)),
            Node("sub", SubsagaNode(inner, "a"), ("a",)),
            Node("a", ActionNode("x")),
        ),
    )
    graph = compile_graph(definition)
    assert list(graph.by_path) == ["z", "sub", "sub/d", "sub/c", "a"]
    assert graph.final == 0
    assert parents(graph) == {"z": ["sub", "a"], "sub": ["sub/d"], "sub/": ["a"], "sub/d": ["sub/c"], "sub/c": ["sub/"], "a": []}
    assert [n.rank for n in graph.nodes] == [2, 1, 1, 1, 0, 0]


def test_an_edge_given_twice_is_one_edge() -> None:
    graph = compile_graph(Definition("s", (Node("a", ActionNode("x")), Node("b", ActionNode("x"), ("a", "a")))))
    assert graph.nodes[1].parents == (0,)
    assert graph.nodes[0].children == (1,)


def test_rank_is_the_longest_way() -> None:
    nodes = (Node("a", ActionNode("x")), Node("b", ActionNode("x"), ("a",)), Node("c", ActionNode("x"), ("a", "b")))
    assert [n.rank for n in compile_graph(Definition("s", nodes)).nodes] == [0, 1, 2]


def test_topological_order() -> None:
    assert topological_order({}) == ([], [])
    assert topological_order({"c": ["a", "b"], "b": ["a"], "a": []}) == (["a", "b", "c"], [])
    assert topological_order({"a": ["b"], "b": ["a", "a"], "c": ["b"], "d": []}) == (["d"], ["a", "b", "c"])


@settings(deadline=None, max_examples=80)
@given(definitions())
def test_every_valid_definition_compiles_to_a_sound_graph(definition: Definition) -> None:
    graph = compile_graph(definition)
    assert [n.index for n in graph.nodes] == list(range(len(graph.nodes)))
    for n in graph.nodes:
        assert len(set(n.parents)) == len(n.parents)
        assert all(n.index in graph.nodes[p].children for p in n.parents)
        assert all(n.index in graph.nodes[c].parents for c in n.children)
        assert (n.action is not None) == (n.kind is NodeKind.ACTION)
        assert (n.constant is not None) == (n.kind is NodeKind.CONSTANT)
        assert (n.timer is not None) == (n.kind is NodeKind.TIMER)
        assert n.deadline is None or n.kind in (NodeKind.ACTION, NodeKind.SIGNAL)
        assert n.forward_only == bool(ancestors_of(graph, n.index) & {*graph.points_of_no_return})
        ancestors = ancestors_of(graph, n.index)
        assert n.index not in ancestors
        assert {i for _, i in n.inputs} <= ancestors
        assert n.params_of is None or n.params_of in ancestors
        if n.kind is NodeKind.SUBSAGA_END:
            assert n.parents == (n.output_of,)
            assert graph.nodes[n.index + 1].kind is NodeKind.SUBSAGA_START
            assert n.index + 1 in ancestors
    assert [n.index for n in graph.nodes if not n.children] == [graph.final]
    assert len(ancestors_of(graph, graph.final)) == len(graph.nodes) - 1, "all lead to the final node"


def ancestors_of(graph: Graph, index: int) -> set[int]:
    found: set[int] = set()
    todo = [index]
    while todo:
        for parent in graph.nodes[todo.pop()].parents:
            if parent not in found:
                found.add(parent)
                todo.append(parent)
    return found
