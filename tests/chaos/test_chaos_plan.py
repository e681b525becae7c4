"""The plan of a chaos run is a function of its seed, and has in it what the run is to try."""

from collections import Counter
from itertools import pairwise

import pytest
from sec_model import compile_graph
from sec_model.commands import Abort, Pause, SetBreakpoint, SetMaxInFlight, Signal, SkipUndo, Step

from sec.chaos.plan import DEFAULT_FAULTS, NODES, SHAPES, FaultKind, Options, make_plan

LONG = Options(seed=7, duration_s=600.0)


def test_the_same_seed_makes_the_same_plan() -> None:
    assert make_plan(LONG) == make_plan(Options(seed=7, duration_s=600.0))


def test_another_seed_makes_another_plan() -> None:
    one, other = make_plan(LONG), make_plan(Options(seed=8, duration_s=600.0))
    assert one.faults != other.faults
    assert [saga.at_s for saga in one.sagas] != [saga.at_s for saga in other.sagas]


def test_the_sagas_of_a_seed_do_not_depend_on_the_faults() -> None:
    assert make_plan(LONG).sagas == make_plan(Options(seed=7, duration_s=600.0, faults=(FaultKind.KILL,))).sagas


def test_faults_are_of_the_kinds_that_are_wanted_and_none_is_left_out() -> None:
    assert {fault.kind for fault in make_plan(LONG).faults} == set(DEFAULT_FAULTS)
    assert not make_plan(Options(seed=7, faults=())).faults
    everything = make_plan(Options(seed=7, duration_s=600.0, faults=(*DEFAULT_FAULTS, FaultKind.ETCD)))
    assert {fault.kind for fault in everything.faults} == set(FaultKind)


def test_only_one_member_of_etcd_is_at_fault_at_a_time() -> None:
    faults = make_plan(Options(seed=7, duration_s=600.0, faults=(FaultKind.ETCD,))).faults
    assert len(faults) > 10
    assert all(one.at_s + one.lasts_s < other.at_s for one, other in pairwise(faults))


def test_some_hangs_outlast_the_lease_and_some_do_not() -> None:
    stops = [fault for fault in make_plan(LONG).faults if fault.how is FaultKind.STOP]
    outlasting = [fault for fault in stops if fault.lasts_s > LONG.lease_ttl_s]
    assert 0 < len(outlasting) < len(stops)


def test_all_of_it_happens_in_the_time_of_the_run_and_at_about_the_rate() -> None:
    plan = make_plan(LONG)
    assert all(0 <= moment.at_s < 600 for moment in (*plan.faults, *plan.sagas))
    assert [fault.at_s for fault in plan.faults] == sorted(fault.at_s for fault in plan.faults)
    assert [saga.at_s for saga in plan.sagas] == sorted(saga.at_s for saga in plan.sagas)
    assert 2700 < len(plan.sagas) < 3300


def test_the_sagas_have_everything_in_them() -> None:
    sagas = make_plan(LONG).sagas
    assert {saga.shape for saga in sagas} == set(SHAPES)
    kinds = Counter(type(given.command) for saga in sagas for given in saga.commands)
    assert {Abort, Pause, SetBreakpoint, SetMaxInFlight, Signal, SkipUndo, Step} <= set(kinds)
    for name in ("fail", "undo_fail", "unavailable", "lost", "twice", "slow", "late"):
        assert any(getattr(saga.manner, name) for saga in sagas), name
    assert len({saga.saga_id for saga in sagas}) == len(sagas)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_nodes_of_a_shape_are_those_of_its_definition(shape: str) -> None:
    assert sorted(NODES[shape]) == sorted(node.path for node in compile_graph(SHAPES[shape]).nodes if node.action is not None)


def test_nothing_fails_for_good_behind_the_point_of_no_return() -> None:
    committed = [saga for saga in make_plan(LONG).sagas if saga.shape == "committed"]
    assert all(attempts <= 2 for saga in committed for path, attempts in saga.manner.fail.items() if path != "a")


@pytest.mark.parametrize("options", [Options(1, duration_s=0), Options(1, rate_per_s=0), Options(1, nodes=0)])
def test_options_that_make_no_sense_are_refused(options: Options) -> None:
    with pytest.raises(ValueError, match="above 0"):
        make_plan(options)
