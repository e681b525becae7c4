"""Random sagas, outcomes, orders, losses and crashes: the invariants hold whatever happens."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mini_driver import MiniDriver, RandomRun, Weather, assert_same_state
from random_sagas import DEADLINES, definitions
from sec_model import Deadline, Definition, Graph, OnDeadline, compile_graph

from sec.core.records import OwnerChanged, SagaId, UndoSkipped
from sec.core.state import fold
from sec.core.transitions import Course
from sec.sim.definitions import offers
from sec.sim.effects import FOREVER, FakeActionServer

CHECKED = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
SEEDS = st.integers(0, 2**32)
CHANCES = st.sampled_from([0.0, 0.05, 0.3])


@st.composite
def servers(draw: st.DrawFn, graph: Graph) -> FakeActionServer:
    """What goes wrong for good: up to two nodes that fail, up to three whose undo fails once, twice or always. Behind a point of no return
    nodes fail once or twice."""
    actions = [n.path for n in graph.nodes if n.action is not None]
    if not actions:
        return FakeActionServer()
    paths = st.sampled_from(actions)
    failing = draw(st.sets(paths, max_size=2))
    behind = [n.path for n in graph.nodes if n.action is not None and n.forward_only]
    return FakeActionServer(
        failing={p: draw(st.sampled_from([1, 2])) if p in behind else FOREVER for p in failing},
        undo_failing=draw(st.dictionaries(paths, st.sampled_from([1, 2, FOREVER]), max_size=3)),
    )


@st.composite
def weathers(draw: st.DrawFn) -> Weather:
    return Weather(draw(CHANCES), draw(CHANCES), draw(CHANCES), operator=draw(st.booleans()), orders=draw(CHANCES))


def fails(graph: Graph, server: FakeActionServer) -> bool:
    """An action fails for good."""
    return any(server.failing.get(n.path) == FOREVER for n in graph.nodes)


def may_expire(graph: Graph, deadline: Deadline | None) -> bool:
    """A deadline may end the forward way."""
    deadlines = [deadline, *(n.deadline for n in graph.nodes)]
    return any(d is not None and d.then is OnDeadline.FAIL for d in deadlines)


@CHECKED
@given(definitions(), DEADLINES, SEEDS, weathers(), st.data())
def test_every_saga_ends_with_all_of_its_effects_or_none(
    definition: Definition, deadline: Deadline | None, seed: int, weather: Weather, data: st.DataObject
) -> None:
    graph = compile_graph(definition)
    server = data.draw(servers(graph))
    actions = sorted(offers(graph.action_names(), releases=3))
    offered = data.draw(st.none() | st.frozensets(st.sampled_from(actions))) if actions else None
    driver = MiniDriver(graph, server, offered=offered)
    failing = fails(graph, server)
    driver.submit(deadline=deadline)
    RandomRun(driver, weather, seed).run_through()
    if not (failing or weather.lost or weather.orders or may_expire(graph, deadline)):
        assert driver.state.course is Course.DONE
    if failing:
        assert driver.state.course in (Course.UNDONE, Course.STUCK)
    if weather.operator:
        assert driver.state.course.ended
    assert_same_state(driver.state, fold(SagaId("s"), graph, driver.log))


@settings(CHECKED, max_examples=1000)
@given(definitions(max_nodes=8), DEADLINES, SEEDS, st.sampled_from([0.1, 0.3, 0.6]), CHANCES, st.booleans(), st.data())
def test_whatever_operators_order_every_saga_ends(
    definition: Definition,
    deadline: Deadline | None,
    seed: int,
    orders: float,
    chance: float,
    crashes: bool,
    data: st.DataObject,
) -> None:
    """Orders of every kind at any instant, in the same step with answers, twice, and pauses without an end but the last."""
    graph = compile_graph(definition)
    driver = MiniDriver(graph, data.draw(servers(graph)))
    driver.submit(deadline=deadline)
    RandomRun(driver, Weather(chance, chance if crashes else 0.0, 0.3, orders=orders), seed).run_through()
    assert driver.state.course.ended
    assert_same_state(driver.state, fold(SagaId("s"), graph, driver.log))


@CHECKED
@given(definitions(max_nodes=12), DEADLINES, SEEDS, weathers(), st.data())
def test_a_saga_recovers_from_every_prefix_of_its_log(
    definition: Definition, deadline: Deadline | None, seed: int, weather: Weather, data: st.DataObject
) -> None:
    graph = compile_graph(definition)
    driver = MiniDriver(graph, data.draw(servers(graph)), keep_worlds=True)
    driver.submit(deadline=deadline)
    RandomRun(driver, weather, seed).run_through()
    assert driver.worlds is not None
    for length, (world, late) in enumerate(driver.worlds):
        if length < 2:  # before it was started it has no owner
            continue
        again = MiniDriver(graph, world, driver.log[:length])
        again.late = list(late)
        again.recover()
        assert isinstance(again.log[length].record, OwnerChanged)
        RandomRun(again, Weather(operator=weather.operator), seed).run_through()


@CHECKED
@given(definitions(plain=True), st.data())
def test_without_mishaps_every_action_is_called_once(definition: Definition, data: st.DataObject) -> None:
    graph = compile_graph(definition)
    driver = MiniDriver(graph, FakeActionServer())
    driver.submit()
    while driver.calls:
        driver.handle(driver.answer(data.draw(st.sampled_from(sorted(driver.calls)))))
    assert driver.state.course is Course.DONE
    assert all(driver.called(n.path) == (1, 0) for n in graph.nodes if not n.instant)


@CHECKED
@given(definitions(max_nodes=20, plain=True), st.data())
def test_a_failure_undoes_once_what_had_succeeded_and_nothing_else(definition: Definition, data: st.DataObject) -> None:
    graph = compile_graph(definition)
    paths = [n.path for n in graph.nodes if not n.instant]
    failing = data.draw(st.sampled_from(paths)) if paths else ""
    driver = MiniDriver(graph, FakeActionServer(failing={failing: FOREVER}))
    driver.submit()
    driver.run()
    assert driver.state.course is (Course.UNDONE if paths else Course.DONE)
    assert not any(isinstance(e.record, UndoSkipped) for e in driver.log)
    for path in paths:
        done, undone = driver.called(path)
        assert undone == (0 if path == failing else done)
