"""The plan of a chaos run is a function of its seed, and has in it what the run is to try."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from sec_model import compile_graph
from sec_model.commands import Abort, Pause, SetBreakpoint, SetMaxInFlight, Signal, SkipUndo, Step

from sec.chaos.plan import ALL, ALWAYS, CLIENT, DEFAULT_FAULTS, KINDS, LEADER, NODES, OWNER, SHAPES, FaultKind, Options, make_plan
from sec.node.failpoints import POINTS

LONG = Options(seed=7, duration_s=600.0)


def test_the_same_seed_makes_the_same_plan() -> None:
    assert make_plan(LONG) == make_plan(Options(seed=7, duration_s=600.0))


def test_another_seed_makes_another_plan() -> None:
    one, other = make_plan(LONG), make_plan(Options(seed=8, duration_s=600.0))
    assert one.faults != other.faults
    assert [saga.at_s for saga in one.sagas] != [saga.at_s for saga in other.sagas]


def test_the_sagas_of_a_seed_do_not_depend_on_the_faults_but_for_what_is_repeated() -> None:
    without = make_plan(Options(seed=7, duration_s=600.0, faults=(FaultKind.KILL,))).sagas
    assert make_plan(replace(LONG, faults=())).sagas == without
    assert not any(saga.manner.again or saga.manner.astray for saga in without)
    repeated = make_plan(LONG).sagas
    assert any(saga.manner.again for saga in repeated)
    assert any(saga.manner.astray for saga in repeated)
    for saga in repeated:
        saga.manner.again.clear()
        saga.manner.astray.clear()
        saga.manner.astray_s.clear()
    assert repeated == without


def test_faults_are_of_the_kinds_that_are_wanted_and_none_is_left_out() -> None:
    planned = {*DEFAULT_FAULTS} - {FaultKind.REPEAT}  # which is in the sagas
    assert {fault.kind for fault in make_plan(LONG).faults} == planned
    assert not make_plan(Options(seed=7, faults=())).faults
    everything = make_plan(Options(seed=7, duration_s=600.0, faults=KINDS, etcd=3))
    assert {fault.kind for fault in everything.faults} == planned | {FaultKind.ETCD}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not FaultKind.REPEAT])
def test_each_kind_alone_has_several_in_a_minute(kind: FaultKind) -> None:
    faults = make_plan(Options(seed=7, faults=(kind,), etcd=3)).faults
    assert len(faults) >= 5
    assert {fault.kind for fault in faults} == {kind}


def test_nodes_die_and_hang_at_every_failpoint() -> None:
    faults = make_plan(Options(seed=7, duration_s=3000.0, faults=(FaultKind.FAILPOINT,))).faults
    hows = (FaultKind.KILL, FaultKind.STOP)
    assert {(fault.point, fault.how) for fault in faults} == {(point, how) for point in POINTS for how in hows}


def test_links_are_between_all_kinds_of_processes_in_both_directions() -> None:
    faults = make_plan(Options(seed=7, duration_s=3000.0, faults=(FaultKind.ONEWAY,), etcd=3)).faults
    nodes = {"sec", LEADER, OWNER}

    def kind(end: str) -> str:
        name = end.partition("-")[0]
        return "sec" if name in nodes else name

    found = {(kind(fault.target), kind(fault.other)) for fault in faults}
    others = {"etcd", "server", CLIENT, ALL}
    assert {("sec", other) for other in others} | {(other, "sec") for other in others} <= found
    assert {("sec", "sec"), ("etcd", "etcd"), ("etcd", ALL)} <= found
    assert all(fault.target != fault.other for fault in faults)


def test_only_one_member_of_etcd_is_at_fault_at_a_time() -> None:
    faults = make_plan(Options(seed=7, duration_s=600.0, faults=(FaultKind.ETCD,), etcd=3)).faults
    assert len(faults) > 10
    assert {fault.how for fault in faults} == {FaultKind.KILL, FaultKind.STOP, FaultKind.RESTART, FaultKind.REPLACE}
    assert all(one.at_s + one.lasts_s < other.at_s for one, other in pairwise(faults))


def test_members_of_etcd_are_killed_only_where_others_are_left() -> None:
    with pytest.raises(ValueError, match="--etcd 3"):
        make_plan(Options(seed=7, faults=(FaultKind.ETCD,), etcd=2))


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


def test_not_all_deliveries_go_astray_behind_the_point_of_no_return() -> None:
    sagas = make_plan(LONG).sagas
    always = {(saga.shape, path) for saga in sagas for path, times in saga.manner.astray.items() if times == ALWAYS}
    assert {path for shape, path in always if shape == "committed"} == {"a"}
    assert {shape for shape, _ in always} == set(SHAPES)


@pytest.mark.parametrize("options", [Options(1, duration_s=0), Options(1, rate_per_s=0), Options(1, nodes=0), Options(1, etcd=0)])
def test_options_that_make_no_sense_are_refused(options: Options) -> None:
    with pytest.raises(ValueError, match="above 0"):
        make_plan(options)
