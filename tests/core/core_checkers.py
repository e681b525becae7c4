"""The invariants of docs/design.md that can be seen at the core, checked against what was written and dispatched.

Written on purpose without `SagaState`: they keep a model of their own, so that a mistake in the core is not repeated here.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from sec_model import Graph

from sec.core.decide import Dispatch
from sec.core.records import (
    AttemptUnknown,
    Created,
    Done,
    Epoch,
    Failed,
    LogEntry,
    Outcome,
    OutcomeUnknown,
    OwnerChanged,
    Phase,
    Started,
    StartRequested,
    Succeeded,
    UndoFailed,
    UndoFinished,
    UndoSkipped,
    UndoStarted,
)
from sec.core.state import SagaState


class Violated(AssertionError):
    """An invariant does not hold. The message begins with its number in the design."""


@dataclass(frozen=True)
class Dispatched:
    """A dispatch as it left a driver of this epoch."""

    dispatch: Dispatch
    epoch: Epoch


Happening = LogEntry | Dispatched

_SETTLED = frozenset({"never", "failed", "undone", "skipped"})


class Checker:
    """Takes what happens to one saga, in order, and raises `Violated` at the first thing that must not be."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.parents = {n.index: _actions_next_to(graph, n.index, up=True) for n in graph.nodes if not n.instant}
        self.children = {n.index: _actions_next_to(graph, n.index, up=False) for n in graph.nodes if not n.instant}
        self.status = dict.fromkeys(self.parents, "never")
        self.sequence = 0
        self.epoch = Epoch(0)
        self.writers: dict[Epoch, str] = {}
        self.unwinding = False
        self.ended = False

    def see(self, happening: Happening) -> None:
        if isinstance(happening, Dispatched):
            self._dispatched(happening)
        else:
            self._entry(happening)

    def _entry(self, entry: LogEntry) -> None:
        require(entry.sequence == self.sequence + 1, f"1: record {entry.sequence} follows record {self.sequence}")
        require(entry.epoch >= self.epoch, f"1: epoch {entry.epoch} follows epoch {self.epoch}")
        writer = self.writers.setdefault(entry.epoch, entry.writer)
        require(writer == entry.writer, f"1: epoch {entry.epoch} has the writers {writer} and {entry.writer}")
        require(not self.ended, f"4: {entry.record} stands behind the end")
        self.sequence, self.epoch = entry.sequence, entry.epoch
        match entry.record:
            case Created() | StartRequested() | OwnerChanged():
                pass
            case Started(path):
                node = self.graph.index_of(path)
                require(not self.unwinding, f"2: {path} starts while the saga unwinds")
                late = [p for p in self.parents[node] if self.status[p] != "succeeded"]
                require(not late, f"2: {path} starts before the outcome of {self._paths(late)}")
                self._move(path, "never", "open")
            case Succeeded(path):
                self._move(path, "open", "succeeded")
            case Failed(path):
                self._move(path, "open", "failed")
                self.unwinding = True
            case AttemptUnknown(path, phase):
                expected = "open" if phase is Phase.DO else "undoing"
                self._move(path, expected, expected)
            case OutcomeUnknown(path):
                self._move(path, "open", "unknown")
                self.unwinding = True
            case UndoStarted(path):
                node = self.graph.index_of(path)
                require(self.unwinding, f"3: {path} is undone while the saga runs forward")
                require(self.status[node] != "failed", f"3: {path} has failed and is undone")
                early = [c for c in self.children[node] if self.status[c] not in _SETTLED]
                require(not early, f"3: {path} is undone before {self._paths(early)}")
                stuck = "undo-failed" in self.status.values()
                require(not stuck or self.status[node] == "undo-failed", f"7: the undo of {path} starts while the saga is stuck")
                self._move(path, "succeeded unknown undo-failed", "undoing")
            case UndoFinished(path):
                self._move(path, "undoing", "undone")
            case UndoFailed(path):
                self._move(path, "undoing", "undo-failed")
            case UndoSkipped(path):
                self._move(path, "undo-failed", "skipped")
            case Done(Outcome.DONE):
                left = [n for n, s in self.status.items() if s != "succeeded"]
                require(not left, f"5: the saga is done without {self._paths(left)}")
                self.ended = True
            case Done(Outcome.UNDONE):
                left = [n for n, s in self.status.items() if s not in _SETTLED]
                require(self.unwinding and not left, f"5: the saga is undone, but not {self._paths(left)}")
                self.ended = True

    def _dispatched(self, happening: Dispatched) -> None:
        dispatch = happening.dispatch
        path = self.graph.nodes[dispatch.node].path
        what = f"{dispatch.phase.value} of {path}"
        require(happening.epoch == self.epoch, f"7: the {what} is dispatched in epoch {happening.epoch} while {self.epoch} is on")
        expected = "open" if dispatch.phase is Phase.DO else "undoing"
        require(self.status[dispatch.node] == expected, f"2: the {what} is dispatched without its record")

    def _move(self, path: str, expected: str, target: str) -> None:
        node = self.graph.index_of(path)
        require(self.status[node] in expected.split(), f"2: {path} goes from {self.status[node]} to {target}")
        self.status[node] = target

    def _paths(self, nodes: list[int]) -> str:
        return ", ".join(self.graph.nodes[n].path for n in nodes)


def check_history(graph: Graph, history: Iterable[Happening]) -> None:
    """Invariants 1, 2, 3 and 7, and the part of 4 and 5 that a log shows."""
    checker = Checker(graph)
    for happening in history:
        checker.see(happening)


def check_settled(state: SagaState) -> None:
    """Invariant 4: the saga has ended, or is stuck and says why."""
    if state.undo_failed:
        reasons = {m.node for m in state.mishaps if m.phase is Phase.UNDO}
        missing = [state.graph.nodes[n].path for n in state.undo_failed if state.graph.nodes[n].path not in reasons]
        require(not missing, f"4: the saga is stuck without a reason at {missing}")
    else:
        require(state.course.ended, f"4: the saga is left {state.course.value}")


def check_all_or_none(graph: Graph, log: Iterable[LogEntry], effects: set[str]) -> None:
    """Invariant 5, of a saga that has ended: `effects` (full paths) is all or nothing, but for undos that an operator gave up."""
    records = [e.record for e in log]
    if records[-1] == Done(Outcome.DONE):
        wanted = {n.path for n in graph.nodes if not n.instant}
        require(effects == wanted, f"5: the saga is done, but the effects differ at {sorted(effects ^ wanted)}")
    else:
        skipped = {r.node for r in records if isinstance(r, UndoSkipped)}
        require(effects <= skipped, f"5: the saga is undone, but {sorted(effects - skipped)} are left")


def require(holds: bool, message: str) -> None:
    if not holds:
        raise Violated(message)


def _actions_next_to(graph: Graph, start: int, *, up: bool) -> set[int]:
    """The nearest actions above (below) a node; constants, starts and ends of subsagas are looked through."""
    found: set[int] = set()
    seen: set[int] = set()
    todo = [start]
    while todo:
        node = graph.nodes[todo.pop()]
        for other in node.parents if up else node.children:
            if other not in seen:
                seen.add(other)
                (todo.append if graph.nodes[other].instant else found.add)(other)
    return found
