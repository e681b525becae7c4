"""The shortest plan that still fails: parts are left out one after the other, as long as the same invariant is violated."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

from sec.sim.network import Weather
from sec.sim.plan import Plan

T = TypeVar("T")

MAX_RUNS = 400
"""Of one shrinking: a run takes some 20 ms."""


def shrink(plan: Plan, fails: Callable[[Plan], bool], max_runs: int = MAX_RUNS) -> Plan:
    """A plan that still `fails`, and from which no single part can be left out; or the best that `max_runs` runs have found."""
    runs = 0
    smaller = True
    while smaller:
        smaller = False
        for candidate in _smaller(plan):
            if runs >= max_runs:
                return plan
            runs += 1
            if fails(candidate):
                plan, smaller = candidate, True
                break
    return plan


def kind_of(violated: str) -> str:
    """Which invariant it is: what stands before the colon."""
    return violated.partition(":")[0]


def _smaller(plan: Plan) -> Iterator[Plan]:
    """The plan without each of its parts, the largest parts first."""
    for saga in plan.sagas:
        if len(plan.sagas) > 1:
            rest = tuple(s for s in plan.sagas if s is not saga)
            yield replace(plan, sagas=rest, steps=tuple(s for s in plan.steps if s.saga != saga.name))
    for node in plan.nodes[1:]:
        nodes = tuple(n for n in plan.nodes if n != node)
        if not any(step.node == node for step in plan.steps):
            yield replace(plan, nodes=nodes)
        yield replace(plan, nodes=nodes, steps=tuple(replace(s, node=nodes[0]) if s.node == node else s for s in plan.steps))
    if plan.weather != Weather():
        yield replace(plan, weather=Weather())
    for left_out in range(len(plan.steps)):
        yield replace(plan, steps=plan.steps[:left_out] + plan.steps[left_out + 1 :])
    for number, saga in enumerate(plan.sagas):
        for simpler in (
            *(replace(saga, failing=_without(saga.failing, path)) for path in saga.failing),
            *(replace(saga, undo_failing=_without(saga.undo_failing, path)) for path in saga.undo_failing),
            *(replace(saga, slow=_without(saga.slow, path)) for path in saga.slow),
            *(replace(saga, busy=_without(saga.busy, path)) for path in saga.busy),
        ):
            yield replace(plan, sagas=(*plan.sagas[:number], simpler, *plan.sagas[number + 1 :]))


def _without(behaviour: Mapping[str, T], path: str) -> dict[str, T]:
    return {other: value for other, value in behaviour.items() if other != path}
