"""Every effect or none: runs of one saga in each of which something else goes wrong."""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sec_client import Definition, Saga
from sec_model import compile_graph

from sec_testing.faults import EVERY, AnyFault, Crash, Delay, Die, Fail, LoseAnswer, LoseCall, Repeat, Straggle, told
from sec_testing.world import NotSettled

if TYPE_CHECKING:
    from sec_testing.run import SagaRun
    from sec_testing.tester import SagaTester

LATER_S = 30.0
"""After which a call is delivered again."""
SHOWN = 5
"""Breaches of which all is told; of the others only which there are."""

Points = Iterable[tuple[AnyFault, ...]]


@dataclass(frozen=True)
class Submitted:
    """A saga as it is to be submitted in each run. `terms` are those of `SagaTester.submit`, and `before` and `having`."""

    saga: Saga | Definition
    params: Any
    terms: dict[str, Any]

    def run(self, tester: "SagaTester", faults: tuple[AnyFault, ...]) -> "SagaRun":
        """Runs it once, in a tester in which nothing has happened yet."""
        terms = {name: value for name, value in self.terms.items() if name not in ("before", "having")}
        try:
            return tester.run(self.saga, self.params, *self.terms.get("having", ()), *faults, **terms)
        except Exception as error:
            error.add_note(f"That was in the run in which {told(faults)}.")
            raise

    @property
    def definition(self) -> Definition:
        """The saga, checked."""
        return self.saga.build() if isinstance(self.saga, Saga) else self.saga

    def prepare(self) -> None:
        """Sets back what a run before has changed."""
        if (before := self.terms.get("before")) is not None:
            before()


def fault_points(tester: "SagaTester", submitted: Submitted) -> list[tuple[AnyFault, ...]]:
    """See `SagaTester.fault_points`."""
    graph = compile_graph(submitted.definition)
    for_ever = {node.path for node in graph.nodes if node.never_given_up}
    nodes, undone, writes, succeeded = _seen(tester, submitted, ())
    points: list[tuple[AnyFault, ...]] = [()]
    for node in nodes:
        points += [(fault,) for fault in _of_do(node)]
        if node not in for_ever:  # where no call brings an answer the saga goes on calling
            for_good = (
                LoseAnswer(node, call=EVERY),
                LoseCall(node, call=EVERY),
                Die(node, call=EVERY),
                Die(node, before=True, call=EVERY),
            )
            points += [(fault,) for fault in for_good]
            points.append((LoseCall(node, call=EVERY), Straggle(node)))
    points += [(fault,) for fault in _crashes(writes)]
    failing: tuple[AnyFault, ...] = ()
    can_fail = [node for node in nodes if node not in for_ever or graph.nodes[graph.index_of(node)].point_of_no_return]
    if succeeded and can_fail:
        failing = (Fail(can_fail[-1]),)
        _, undone, writes, _ = _seen(tester, submitted, failing)
        points += [(*failing, fault) for fault in _crashes(writes)] if undone else []
    for node in undone:
        points += [(*failing, fault) for fault in _of_undo(node)]
    return points


def _seen(tester: "SagaTester", submitted: Submitted, faults: tuple[AnyFault, ...]) -> tuple[list[str], list[str], int, bool]:
    """Which nodes are called, of which the undo is, how many writes there are, and whether it ends done."""
    submitted.prepare()
    with tester.fresh() as fresh:
        run = submitted.run(fresh, faults)
        nodes = list(dict.fromkeys(made.node for made in run.calls if not made.undo))
        undone = list(dict.fromkeys(made.node for made in run.calls if made.undo))
        return nodes, undone, run.writes, run.done


def _of_do(node: str) -> Sequence[AnyFault]:
    return (
        Fail(node),
        LoseAnswer(node),
        LoseCall(node),
        Die(node),
        Delay(node, by_s=LATER_S),
        Repeat(node),
        Repeat(node, after_s=LATER_S),
    )


def _of_undo(node: str) -> Sequence[AnyFault]:
    return (
        LoseAnswer(node, undo=True),
        LoseCall(node, undo=True),
        Die(node, undo=True),
        Repeat(node, undo=True),
        Repeat(node, after_s=LATER_S, undo=True),
        Straggle(node),
        Straggle(node, undo=True),
    )


def _crashes(writes: int) -> Sequence[Crash]:
    return [Crash(write, before=before) for write in range(1, writes + 1) for before in (True, False)]


class EachFault:
    """The runs, one after the other, for `for` and for `async for`. A run is gone when the next one begins."""

    def __init__(self, tester: "SagaTester", submitted: Submitted, points: Points | None) -> None:
        self._tester = tester
        self._submitted = submitted
        self._points = points

    def __iter__(self) -> "Iterator[SagaRun]":
        for faults in self.points():
            self._submitted.prepare()
            with self._tester.fresh() as fresh:
                run = self._submitted.run(fresh, faults)
                self._tester.show(str(run))
                yield run

    async def __aiter__(self) -> "AsyncIterator[SagaRun]":
        for run in self:
            yield run

    def points(self) -> Points:
        """The faults of each run."""
        return fault_points(self._tester, self._submitted) if self._points is None else self._points


def assert_all_or_none(
    tester: "SagaTester", submitted: Submitted, points: Points | None, world: "Callable[[SagaTester], Any]"
) -> int:
    """See `SagaTester.assert_all_or_none`."""
    everything: Any = None
    known = False
    count = 0
    breaches: list[tuple[str, str]] = []
    for faults in [(), *(p for p in EachFault(tester, submitted, points).points() if p)]:
        submitted.prepare()
        with tester.fresh() as fresh:
            nothing = world(fresh)
            count += 1
            try:
                run = submitted.run(fresh, faults)
            except NotSettled as error:
                breaches.append((f"When {told(faults)}, it does not come to an end", str(error)))
                continue
            left = world(fresh)
            if not faults and run.done:
                everything, known = left, True
            because = _breach(run, left, nothing, everything, known)
            if because:
                breaches.append((f"When {told(faults)}, {because}", str(run)))
    if breaches:
        raise AssertionError(_report(breaches, count))
    return count


def _breach(run: "SagaRun", left: Any, nothing: Any, everything: Any, known: bool) -> str:
    """What is not as it must be after a run; empty: all is."""
    if run.undone:
        return "" if left == nothing else f"the saga is undone, and the world has {left!r}, where {nothing!r} was before"
    if not run.done:
        return f"the saga is neither done nor undone: it is {run.state}"
    if not known:
        return f"the saga is done, which it is not when nothing goes wrong; the world has {left!r}"
    return "" if left == everything else f"the saga is done, and the world has {left!r}, where {everything!r} is all"


def _report(breaches: Sequence[tuple[str, str]], count: int) -> str:
    lines = [f"Neither every effect nor none, after {len(breaches)} of {count} runs."]
    for what, story in breaches[:SHOWN]:
        lines += [f"{what}.", *(f"    {line}" for line in story.splitlines())]
    lines += [f"{what}." for what, _ in breaches[SHOWN:]]
    return "\n".join(lines)
