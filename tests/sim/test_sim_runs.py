"""Runs of the simulator: that they find nothing, find what is there, and are the same every time."""

import gc
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import pytest
from click.testing import CliRunner
from sec_model import Saga, action

from sec.cli import main
from sec.core.decide import Ready
from sec.node.driver import SagaDriver
from sec.node.owner import Owner
from sec.sim.network import Weather
from sec.sim.plan import Do, Plan, SagaPlan, draw_plan
from sec.sim.seeds import search
from sec.sim.shrink import kind_of, shrink
from sec.sim.world import run_plan

SEEDS = 200


def chain(*names: str) -> SagaPlan:
    saga = Saga("chain")
    for name in names:
        saga.append(action(name, "step"))
    return SagaPlan("saga-1", saga.build())


def plan(*steps: Do, saga: SagaPlan | None = None) -> Plan:
    return Plan(1, ("sec-1", "sec-2"), (saga or chain("a", "b"),), steps, Weather())


def digest_of(seed: int) -> int:
    return run_plan(draw_plan(seed)).digest


@pytest.mark.parametrize("start", range(0, SEEDS, 50))
def test_no_invariant_is_violated(start: int) -> None:
    found = {seed: result.violated for seed in range(start, start + 50) if (result := run_plan(draw_plan(seed))).violated}

    assert found == {}


def test_one_seed_is_one_run() -> None:
    seeds = range(300, 312)
    here = [digest_of(seed) for seed in seeds]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        there = list(pool.map(digest_of, seeds))

    assert here == there
    assert len(set(here)) == len(seeds)


def test_a_saga_survives_its_owner() -> None:
    crash = Do(0.5, "crash", "sec-1", for_s=5.0, moment="a call is made")

    result = run_plan(plan(crash, Do(1.0, "submit", "sec-1", "saga-1")), tracing=True)

    trace = "\n".join(result.trace)
    assert not result.violated
    assert "sec-1    is killed" in trace
    assert "sec-2    owns saga-1" in trace
    assert "Done(outcome=<Outcome.DONE" in trace


def test_a_node_that_was_stopped_for_longer_than_its_lease_calls_nobody() -> None:
    stop = Do(0.5, "stop", "sec-1", for_s=4.0, moment="a write has landed")

    result = run_plan(plan(Do(1.0, "submit", "sec-1", "saga-1"), replace(stop, at_s=1.001)), tracing=True)

    assert not result.violated
    assert [line for line in result.trace if "owns" in line and "sec-2" in line]
    assert not [line for line in result.trace if "sec-1" in line and "calls" in line]


@pytest.mark.parametrize("fail", [None, "b"])
def test_effects_are_all_or_none(fail: str | None) -> None:
    saga = replace(chain("a", "b"), failing={fail: -1} if fail else {})

    result = run_plan(plan(Do(1.0, "submit", "sec-1", "saga-1"), saga=saga), tracing=True)

    assert not result.violated
    assert f"Outcome.{'UNDONE' if fail else 'DONE'}" in "\n".join(result.trace)


def test_a_bug_is_found_and_shrunk_to_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    async def append(self: Owner, driver: SagaDriver, ready: Ready) -> None:
        """Says that it is done, and does nothing."""

    monkeypatch.setattr(Owner, "append", append)
    long = next(plan for plan in map(draw_plan, range(100)) if run_plan(plan).violated and len(plan.steps) > 5)
    violated = run_plan(long).violated

    short = shrink(long, lambda candidate: kind_of(run_plan(candidate).violated) == kind_of(violated))

    assert kind_of(violated) == kind_of(run_plan(short).violated)
    assert len(short.steps) <= 2
    assert short.steps[0].saga == short.sagas[0].name
    assert len(short.nodes) == 1


def test_shrinking_keeps_nothing_that_is_not_needed() -> None:
    long = draw_plan(5)
    wanted = long.steps[len(long.steps) // 2]

    short = shrink(long, lambda candidate: wanted.at_s in [step.at_s for step in candidate.steps])

    assert [step.at_s for step in short.steps] == [wanted.at_s]
    assert len(short.nodes) == 1


def test_shrinking_stops_after_so_many_runs() -> None:
    runs: list[Plan] = []

    shrink(draw_plan(5), lambda candidate: bool(runs.append(candidate)) or True, max_runs=3)

    assert len(runs) == 3


def test_the_command_tells_of_one_seed() -> None:
    answer = CliRunner().invoke(main, ["sim", "run", "--seed", "7"])

    assert answer.exit_code == 0
    assert answer.output.startswith("Seed 7 violates nothing. What happens in it:")
    assert "submit saga saga-1" in answer.output
    assert "owns saga-1 in epoch" in answer.output


def test_the_command_counts_seeds() -> None:
    answer = CliRunner().invoke(main, ["sim", "run", "--seeds", "3", "--first", "40", "--jobs", "1"])

    assert answer.exit_code == 0
    assert answer.output.startswith("3 seeds in ")
    assert answer.output.endswith("0 failed.\n")


def test_a_run_leaves_nothing_behind() -> None:
    """What cannot be collected would keep whole nodes: a value without a place in the garbage collector must not lead back to one."""

    def left() -> int:
        gc.collect()
        return len(gc.get_objects())

    search(range(10), enough=1)
    before = left()
    search(range(10, 40), enough=1)
    assert left() - before < 500
