"""Runs many seeds, on all cores, and tells of those that fail."""

import gc
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice

from sec.sim.plan import Plan, draw_plan
from sec.sim.shrink import kind_of, shrink
from sec.sim.world import run_plan

BATCH = 50
"""Seeds that a process is given at once."""
MAX_FOUND = 5
"""So many failing seeds are enough."""
SAY_EVERY_S = 10.0


def violation_of(plan: Plan) -> str:
    """What a run of the plan violates; empty: nothing."""
    return run_plan(plan).violated


def search(seeds: Iterable[int], enough: int) -> list[tuple[int, str]]:
    """The seeds that fail, each with what it violates; at most the first `enough`."""
    sys.unraisablehook = lambda _: None  # what the runs of broken code leave behind is of no interest
    found = []
    gc.disable()  # a run leaves many cycles, which are cheaper to collect after it
    try:
        for seed in seeds:
            violated = violation_of(draw_plan(seed))
            if violated:
                found.append((seed, violated))
                if len(found) >= enough:
                    break
            if seed % 8 == 0:
                gc.collect()
    finally:
        gc.enable()
    return found


def run_seeds(first: int, count: int, jobs: int, enough: int, say: Callable[[str], None]) -> list[int]:
    """Runs `count` seeds from `first` on in `jobs` processes. Stops early when `enough` have failed. Returns those that did."""
    began_s = said_s = time.monotonic()
    found: list[int] = []
    done = 0
    batches = (range(start, min(start + BATCH, first + count)) for start in range(first, first + count, BATCH))
    os.environ["PYTHONHASHSEED"] = "0"  # of the processes that are started now
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for batch, failing in _in_turn(pool, batches, 2 * jobs, enough):
            done += len(batch)
            for seed, violated in failing:
                found.append(seed)
                say(f"Seed {seed} violates {violated}")
            now_s = time.monotonic()
            if now_s - said_s >= SAY_EVERY_S:
                said_s = now_s
                say(f"{done} of {count} seeds, {done / (now_s - began_s):.0f} a second, {len(found)} failed.")
            if len(found) >= enough:
                break
    spent_s = time.monotonic() - began_s
    say(f"{done} seeds in {spent_s:.1f} s ({done / spent_s:.0f} a second): {len(found)} failed.")
    return found


def _in_turn(
    pool: ProcessPoolExecutor, batches: Iterator[range], ahead: int, enough: int
) -> Iterator[tuple[range, list[tuple[int, str]]]]:
    """The results in the order of the seeds, so that the same seeds are found every time."""
    waiting = [(batch, pool.submit(search, batch, enough)) for batch in islice(batches, ahead)]
    try:
        while waiting:
            batch, future = waiting.pop(0)
            yield batch, future.result()
            waiting += [(following, pool.submit(search, following, enough)) for following in islice(batches, 1)]
    finally:
        for _, future in waiting:
            future.cancel()


def run_apart(seed: int, *, shrinking: bool) -> tuple[list[str], bool]:
    """`explain` in a process of its own, in which the seed does what it did in the search."""
    os.environ["PYTHONHASHSEED"] = "0"
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(explain, seed, shrinking=shrinking).result()


def explain(seed: int, *, shrinking: bool) -> tuple[list[str], bool]:
    """The lines that tell of one seed: what it violates, if anything, the shortest plan that does so too, and what happens in it. And whether it fails."""
    sys.unraisablehook = lambda _: None
    plan = draw_plan(seed)
    violated = violation_of(plan)
    if not violated:
        trace = run_plan(plan, tracing=True).trace
        return [f"Seed {seed} violates nothing. What happens in it:", "", *plan.lines(), "", *trace], False
    if shrinking:
        kind = kind_of(violated)
        plan = shrink(plan, lambda candidate: kind_of(violation_of(candidate)) == kind)
    result = run_plan(plan, tracing=True)
    found = f"Seed {seed} violates {violated}"
    head = "The shortest script that fails like it, and what happens in it:" if shrinking else "What happens in it:"
    return [found, "", head, "", *plan.lines(), "", *result.trace, "", result.violated], True
