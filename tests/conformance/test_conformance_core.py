"""The rows at the core. Those of the demo saga and of the repeats are the tests of tests/core/test_core_conformance.py."""

from collections.abc import Callable
from typing import Any

import compact
import pytest
import test_core_conformance as demo
from mini_driver import MiniDriver
from sec_model import (
    ActionNode,
    ConstantNode,
    Definition,
    DefinitionError,
    Input,
    Node,
    Payload,
    Saga,
    SubsagaNode,
    action,
    compile_graph,
    subsaga,
)
from sec_model.commands import InjectError, InjectRepeat
from sec_model.graph import MAX_NODES
from situations import reach
from test_core_status import SHOWN, do, fail

from sec.core.decide import decide
from sec.core.errors import CorruptLog, IllegalTransition
from sec.core.records import (
    AttemptUnknown,
    Commanded,
    Created,
    Done,
    Epoch,
    Failed,
    Fault,
    LogEntry,
    NodePath,
    Outcome,
    OwnerChanged,
    Phase,
    Record,
    SagaId,
    SecNodeName,
    Started,
    StartRequested,
    Succeeded,
    UndoFinished,
    UndoStarted,
)
from sec.core.refusals import refusal
from sec.core.state import SagaState, fold
from sec.core.status import node_state
from sec.core.transitions import Course
from sec.sim.effects import FOREVER, FakeActionServer

DEMO_ROWS: dict[str, Callable[[], None]] = {
    "nodes in order of insertion": demo.test_demo_nodes_stand_in_order_of_insertion,
    "status before start": demo.test_demo_status_before_start,
    "run": demo.test_demo_run,
    "error injected at instance_boot": demo.test_demo_error_at_instance_boot,
    "error injected at instance_boot, and the undo of instance_id fails for good": (
        demo.test_demo_error_at_instance_boot_and_undo_of_instance_id_fails
    ),
    "recovered from a complete log": demo.test_demo_recovered_from_a_complete_log,
    "recovered with the last 5 records cut off": demo.test_demo_recovered_with_the_last_5_records_cut_off,
    "a failed one recovered with the last 3 records cut off": (
        demo.test_demo_failed_recovered_with_the_last_3_records_cut_off_goes_on_unwinding
    ),
    "a stuck one recovered": demo.test_demo_stuck_recovered,
}
REPEAT_ROWS = {
    "plain: 1/0, 1/0": "plain",
    "repeat n1 do 2: 2/0, 1/0": "repeat n1 do 2",
    "repeat n1 2/1 and n2 fails: 2/1, 0/0": "repeat n1 2/1 and n2 fails",
    "repeat n1 2/2 and n2 fails: 2/2, 0/0": "repeat n1 2/2 and n2 fails",
    "repeat n1 1/2 and n2 fails: 1/2, 0/0": "repeat n1 1/2 and n2 fails",
    "repeat n1 3/5 and n2 fails: 3/5, 0/0": "repeat n1 3/5 and n2 fails",
    "n1 fails: nothing is called": "n1 fails",
}


def core(row: str) -> pytest.MarkDecorator:
    return pytest.mark.conformance(row=row, level="core")


@pytest.mark.parametrize("check", [pytest.param(check, marks=core(row), id=row) for row, check in DEMO_ROWS.items()])
def test_demo_saga(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("case", [pytest.param(case, marks=core(row), id=row) for row, case in REPEAT_ROWS.items()])
def test_calls(case: str) -> None:
    demo.test_repeats(case)


# definition errors


def node(name: str, *depends_on: str, reads: str = "") -> Node:
    return Node(name, ActionNode("step"), depends_on, (Input(reads, reads),) if reads else ())


def saga(*nodes: Node) -> Definition:
    return Definition("s", nodes)


def inside(*nodes: Node, params_from: str = "") -> Node:
    return Node("x", SubsagaNode(Definition("inner", nodes), params_from))


WRONG: dict[str, tuple[Definition, str]] = {
    "a duplicate node name in one (sub)saga": (
        saga(inside(node("a"), node("a", "a"))),
        'The node name "a" is used twice in subsaga "x".',
    ),
    "a cycle": (saga(node("a", "b"), node("b", "a")), 'The nodes "a", "b" of saga "s" depend on each other in a circle.'),
    "an edge to an unknown node": (saga(node("a", "b")), 'Node "a" depends on "b", which is not a node of saga "s".'),
    "a subsaga whose params come from a node that it does not depend on": (
        saga(node("a"), inside(node("b"), params_from="a"), node("z", "a", "x")),
        'Node "x" is a subsaga whose params come from "a", which is not one of its ancestors: let it depend on "a".',
    ),
    "a node that reads the output of a node that is not its ancestor": (
        saga(node("a"), node("b", reads="a"), node("z", "a", "b")),
        'Node "b" reads the output of "a", which is not one of its ancestors: let it depend on "a".',
    ),
    "no single final node": (
        saga(node("a"), node("b", "a"), node("c", "a")),
        'The saga "s" must end in one final node, but nothing depends on any of "b", "c": add a node that depends on them.',
    ),
    "more nodes than the limit": (
        saga(*(Node(f"n{i}", ConstantNode(Payload())) for i in range(MAX_NODES + 1))),
        f'Saga "s" has {MAX_NODES + 1} nodes; at most {MAX_NODES} are allowed.',
    ),
}


@pytest.mark.parametrize("row", [pytest.param(row, marks=core(row), id=row) for row in WRONG])
def test_a_wrong_definition(row: str) -> None:
    definition, sentence = WRONG[row]
    with pytest.raises(DefinitionError) as caught:
        compile_graph(definition)
    assert caught.value.problems == (sentence,)


@core("an empty parallel stage")
def test_an_empty_parallel_stage() -> None:
    with pytest.raises(DefinitionError) as caught:
        Saga("s").append(action("a", "step")).append_parallel().build()
    assert caught.value.problems == ('A parallel stage of saga "s" is empty.',)


@core("an action that no action server offers")
def test_an_action_that_is_not_offered_is_waited_for() -> None:
    driver = MiniDriver(compact.graph("a > b"), FakeActionServer(), offered=frozenset({"a"}))
    driver.submit()
    driver.run()
    assert demo.status(driver) == {"a": "done", "b": "queued"}
    assert "Started b" not in demo.records(driver.log), "what never had a chance to run has nothing to undo"


# API behaviour


@core("created but not started never runs")
def test_created_but_not_started() -> None:
    driver = MiniDriver(compact.graph("a > b"), FakeActionServer())
    driver.submit(start=False)
    driver.recover()
    assert (driver.calls, driver.state.course, len(driver.log)) == ({}, Course.CREATED, 1)


@pytest.mark.parametrize(
    "text", [pytest.param("a", marks=core("double start")), pytest.param("a=1", marks=core("start of a finished saga"))]
)
def test_a_second_start(text: str) -> None:
    driver = MiniDriver(compact.graph(text), FakeActionServer())
    driver.submit()
    if text == "a":
        assert driver.state.course is Course.RUNNING
    else:
        assert driver.state.course is Course.DONE
    with pytest.raises(IllegalTransition):
        driver.state.apply(StartRequested())


@core("several failures at once: the result names each, the first by time first")
def test_several_failures() -> None:
    driver = MiniDriver(compact.graph("a > b | c | d > z"), FakeActionServer(failing={"b": FOREVER, "d": FOREVER}))
    driver.submit()
    driver.handle(driver.answer(driver.graph.index_of("a")))
    for path in ("d", "c", "b"):
        driver.handle(driver.answer(driver.graph.index_of(path)))
    driver.run()
    assert demo.errors(driver) == [("d", Phase.DO), ("b", Phase.DO)]
    assert driver.state.course is Course.UNDONE


# status text


SHOWN_BY_RECORDS: dict[str, list[Record]] = {
    "blocked": [],
    "retrying": [Started(NodePath("a")), AttemptUnknown(NodePath("a"), Phase.DO, 1, Fault("No answer."), 1.0)],
}


@pytest.mark.parametrize("state", [pytest.param(s, marks=core(f"state {s}"), id=s) for s in sorted(set(SHOWN.values()))])
def test_a_state_is_shown(state: str) -> None:
    situation = next(situation for situation, shown in SHOWN.items() if shown == state)
    found = reach(situation)
    assert node_state(found, found.graph.index_of("n")).value == state


@pytest.mark.parametrize("state", [pytest.param(s, marks=core(f"state {s}"), id=s) for s in SHOWN_BY_RECORDS])
def test_a_state_of_two_nodes_is_shown(state: str) -> None:
    found = state_of("a > b", SHOWN_BY_RECORDS[state])
    assert node_state(found, found.graph.index_of("b" if state == "blocked" else "a")).value == state


@core("a failed node and a failed-then-unwound one look different")
def test_failed_and_unwound() -> None:
    found = state_of("a > b", [*do("a"), *fail("b"), UndoStarted(NodePath("a")), UndoFinished(NodePath("a")), Done(Outcome.UNDONE)])
    assert [node_state(found, i).value for i in range(2)] == ["undone", "failed"]


def state_of(text: str, records: list[Record]) -> SagaState:
    state = SagaState(SagaId("s"), compact.graph(text))
    for record in [Created("uid", "hash"), StartRequested(), *records]:
        state.apply(record)
    return state


# bugs of the prior art


@core("two sources of truth for a node's state that tear")
def test_the_state_is_what_the_log_says_after_each_record() -> None:
    driver = demo.demo(boot_fails=True)
    live = SagaState(SagaId("s"), driver.graph)
    for count, entry in enumerate(driver.log, 1):
        live.apply_entry(entry)
        assert live.marks == fold(SagaId("s"), driver.graph, driver.log[:count]).marks
    assert live.marks == driver.state.marks


@core("a join that never started while one parent is undone makes recovery refuse the saga")
def test_a_join_that_never_started() -> None:
    graph = compact.graph("a > b | c > z")
    driver = MiniDriver(graph, FakeActionServer(failing={"c": FOREVER}))
    driver.submit()
    driver.run()
    undone = [type(e.record) for e in driver.log].index(UndoFinished) + 1
    for length in range(undone, len(driver.log)):
        again = MiniDriver(graph, driver.server.copy(), driver.log[:length])
        again.recover()
        again.run()
        assert demo.status(again) == {"a": "undone", "b": "undone", "c": "failed", "z": "abandoned"}


FOLDABLE: list[tuple[int, Record]] = [
    (1, Created("uid", "hash")),
    (1, StartRequested()),
    (1, Started(NodePath("a"))),
    (7, OwnerChanged(Epoch(7), SecNodeName("sec-7"))),
    (7, Succeeded(NodePath("a"), Payload())),
]


def entries(**changed: Any) -> list[LogEntry]:
    """A log that can be folded, whose last entry is changed."""
    made = [LogEntry(n, Epoch(epoch), SecNodeName(f"sec-{epoch}"), 5, record) for n, (epoch, record) in enumerate(FOLDABLE, 1)]
    last = made[-1]
    values = {"sequence": last.sequence, "epoch": last.epoch, "writer": last.writer, "time_us": 5, "record": last.record}
    return [*made[:-1], LogEntry(**{**values, **changed})]


@core("log records without sequence, time or writer")
def test_a_log_has_every_sequence_number_once() -> None:
    assert fold(SagaId("s"), compact.graph("a"), entries()).course is Course.RUNNING
    for sequence in (0, 4, 6):
        with pytest.raises(CorruptLog, match=rf"record {sequence} stands where record 5 belongs"):
            fold(SagaId("s"), compact.graph("a"), entries(sequence=sequence))


@pytest.mark.parametrize(
    "changed", [{"epoch": 1, "writer": "sec-1"}, {"writer": "sec-1"}, {"epoch": 8, "writer": "sec-8"}], ids=repr
)
@core("log writes that are not fenced by ownership")
def test_a_log_has_one_writer_in_each_epoch(changed: dict[str, Any]) -> None:
    with pytest.raises(CorruptLog, match="record 5"):
        fold(SagaId("s"), compact.graph("a"), entries(**changed))


@core("a stuck saga is not a state of its own")
def test_stuck_is_a_course() -> None:
    driver = demo.demo(boot_fails=True, undo_fails=True)
    assert driver.state.course is Course.STUCK
    assert not driver.state.course.ended


@core("one unrecoverable saga stops the recovery of all")
def test_an_unfoldable_log_is_named_and_others_are_folded() -> None:
    good = fold(SagaId("good"), compact.graph("a"), entries())
    with pytest.raises(CorruptLog, match='The log of saga "bad" cannot be folded'):
        fold(SagaId("bad"), compact.graph("a"), entries(record=Failed(NodePath("b"), Fault("x"))))
    assert good.marks == fold(SagaId("good"), compact.graph("a"), entries()).marks


@core("node names of a subsaga collide with those outside")
def test_equal_names_inside_and_outside() -> None:
    inner = Saga("inner").append(action("a", "step")).append(action("b", "step", reads=["a"]))
    graph = compile_graph(
        Saga("s").append(action("a", "step")).append(subsaga("x", inner)).append(action("b", "step", reads=["a", "x"])).build()
    )
    assert list(graph.by_path) == ["a", "x", "x/a", "x/b", "b"]
    assert graph.nodes[graph.index_of("x/b")].inputs == (("a", graph.index_of("x/a")),)
    assert ("a", graph.index_of("a")) in graph.nodes[graph.index_of("b")].inputs
    driver = MiniDriver(graph, FakeActionServer())
    driver.submit()
    driver.run()
    assert driver.server.effects == {"a", "x/a", "x/b", "b"}


@core("an error injected at an unknown node is accepted silently")
@pytest.mark.parametrize("phase", Phase, ids=lambda phase: phase.value)
def test_an_injection_at_an_unknown_node_is_refused(phase: Phase) -> None:
    inner = Saga("inner").append(action("a", "step"))
    graph = compile_graph(Saga("s").append(subsaga("x", inner)).append(action("z", "step")).build())
    driver = MiniDriver(graph, FakeActionServer())
    driver.submit()
    for unknown in ("nobody", "a"):  # the inner one is called "x/a"
        sentence = f'Saga "s" has no node "{unknown}".'
        for injection in (InjectError(NodePath(unknown), phase), InjectRepeat(NodePath(unknown), phase, 2)):
            assert refusal(driver.state, injection) == sentence
            order = driver.ordered(injection)
            assert decide(driver.state, [order]).records == (Commanded(order.command_id, "ada", injection, sentence),)
    assert refusal(driver.state, InjectError(NodePath("z"), phase)) == ""
    driver.run()
    assert driver.state.course is Course.DONE
