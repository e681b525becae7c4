"""The invariants of docs/design.md that can be seen at the core, checked against what was written and dispatched.

Written on purpose without `SagaState`: they keep a model of their own, so that a mistake in the core is not repeated here.
"""

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import zip_longest

from sec_model import Graph
from sec_model.commands import (
    Abort,
    Command,
    InjectError,
    InjectRepeat,
    MarkUndone,
    Pause,
    Resume,
    RetryUndo,
    SetBreakpoint,
    SetMaxInFlight,
    SkipUndo,
    Step,
)

from sec.core.decide import Dispatch
from sec.core.records import (
    AttemptUnknown,
    BreakpointHit,
    Commanded,
    Created,
    Done,
    Epoch,
    Failed,
    LogEntry,
    NodePath,
    Outcome,
    OutcomeUnknown,
    OwnerChanged,
    Phase,
    Record,
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
        self.orders = Orders()

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
        in_flight = sum(s in ("open", "undoing") for s in self.status.values())
        self._of_the_graph(entry.record)
        self.orders.see(entry.record, in_flight)

    def _of_the_graph(self, record: Record) -> None:
        match record:
            case Created() | StartRequested() | OwnerChanged():
                pass
            case Commanded(_, _, command, refused):
                if isinstance(command, Abort) and not refused:
                    require(not self.unwinding, "6: a saga that unwinds is aborted")
                    self.unwinding = True
            case BreakpointHit(path, after):
                require(not self.unwinding, f"6: the breakpoint at {path} is reached while the saga unwinds")
                self._move(path, *(("succeeded", "succeeded") if after else ("never", "never")))
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
                self._move(path, "undoing undo-failed", "undone")
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
        self.orders.see_dispatch(NodePath(path), dispatch)

    def _move(self, path: str, expected: str, target: str) -> None:
        node = self.graph.index_of(path)
        require(self.status[node] in expected.split(), f"2: {path} goes from {self.status[node]} to {target}")
        self.status[node] = target

    def _paths(self, nodes: list[int]) -> str:
        return ", ".join(self.graph.nodes[n].path for n in nodes)


class Orders:
    """What operators have ordered, by the log alone, and whether it is kept."""

    def __init__(self) -> None:
        self.ids: set[str] = set()
        self.paused = False
        self.steps = 0
        self.stepped: set[NodePath] = set()
        self.limit = 0
        self.breakpoints: set[tuple[NodePath, bool]] = set()
        self.errors: set[tuple[NodePath, Phase]] = set()
        self.repeats: dict[tuple[NodePath, Phase], int] = {}
        self.held: set[NodePath] = set()
        self.permitted: Command | None = None
        """The order of the record before, when it is one that a record of its own follows."""

    def see(self, record: Record, in_flight: int) -> None:
        """`in_flight`: how many actions and undo actions are, before the record."""
        permitted, self.permitted = self.permitted, None
        match record:
            case Commanded(command_id, _, command, refused):
                require(command_id not in self.ids, f"6: the command {command_id} is taken up twice")
                self.ids.add(command_id)
                if not refused:
                    self._ordered(command)
            case BreakpointHit(path, after):
                require((path, after) in self.breakpoints, f"6: there is no breakpoint at {path}")
                self.breakpoints.discard((path, after))
                self.paused = True
            case Started(path):
                require((path, False) not in self.breakpoints, f"6: {path} starts past its breakpoint")
                self._starts(path, in_flight)
            case UndoStarted(path):
                if path in self.held:
                    require(permitted == RetryUndo(path), f"6: nobody ordered that the undo of {path} be tried again")
                    self.held.discard(path)
                    self.stepped |= {path} if self.paused else set()
                else:
                    self._starts(path, in_flight)
            case Succeeded(path):
                require((path, Phase.DO) not in self.errors, f"6: {path} succeeds in spite of its injected error")
                self._settled(path, Phase.DO)
            case Failed(path) | OutcomeUnknown(path):
                self._settled(path, Phase.DO)
            case UndoFinished(path):
                if path in self.held:
                    by_hand = isinstance(permitted, MarkUndone) and permitted.node == path
                    require(by_hand, f"6: nobody said that {path} is undone")
                    self.held.discard(path)
                else:
                    require((path, Phase.UNDO) not in self.errors, f"6: {path} is undone in spite of its injected error")
                self._settled(path, Phase.UNDO)
            case UndoFailed(path):
                self._settled(path, Phase.UNDO)
                self.held.add(path)
            case UndoSkipped(path, reason):
                require(permitted == SkipUndo(path, reason), f"6: nobody ordered that the undo of {path} be skipped")
                self.held.discard(path)
                self._settled(path, Phase.UNDO)
            case Created() | StartRequested() | OwnerChanged() | AttemptUnknown() | Done():
                pass

    def see_dispatch(self, path: NodePath, dispatch: Dispatch) -> None:
        what, key = f"{dispatch.phase.value} of {path}", (path, dispatch.phase)
        require(not self.paused or path in self.stepped, f"7: the {what} is dispatched while the saga is paused")
        require(dispatch.injected_error == (key in self.errors), f"6: the {what} is dispatched without what was injected")
        require(dispatch.repeats == self.repeats.get(key, 1), f"6: the {what} is dispatched without its repeats")

    def _ordered(self, command: Command) -> None:
        match command:
            case Pause():
                require(not self.paused, "6: a paused saga is paused")
                self.paused = True
            case Resume():
                require(self.paused, "6: a saga that is not paused is resumed")
                self._resumed()
            case Abort():
                self._resumed()
            case Step():
                require(self.paused, "6: a saga that is not paused is stepped")
                self.steps += 1
            case SetBreakpoint(path, after, clear):
                (self.breakpoints.discard if clear else self.breakpoints.add)((path, after))
            case SetMaxInFlight(limit):
                self.limit = limit
            case InjectError(path, phase):
                self.errors.add((path, phase))
            case InjectRepeat(path, phase, count):
                self.repeats[path, phase] = count
            case RetryUndo(path) | SkipUndo(path) | MarkUndone(path):
                require(path in self.held, f"6: the undo of {path} has not failed")
                self.permitted = command

    def _resumed(self) -> None:
        self.paused, self.steps = False, 0
        self.stepped.clear()

    def _starts(self, path: NodePath, in_flight: int) -> None:
        require(not self.limit or in_flight < self.limit, f"6: {path} starts as number {in_flight + 1} in flight, of {self.limit}")
        if self.paused:
            require(self.steps > 0, f"7: {path} starts while the saga is paused")
            self.steps -= 1
            self.stepped.add(path)

    def _settled(self, path: NodePath, phase: Phase) -> None:
        self.stepped.discard(path)
        self.errors.discard((path, phase))
        self.repeats.pop((path, phase), None)


def check_step(records: Sequence[Record], breakpoints: AbstractSet[tuple[NodePath, bool]], *, running: bool) -> None:
    """Of the records of one step, which become durable together or not at all: what a record calls for stands right behind it.

    Invariant 6: an order to a node is never durable without its effect. `breakpoints` and `running` are as they were before the step."""
    points = set(breakpoints)
    for record, following in zip_longest(records, records[1:]):
        match record:
            case Commanded(_, _, RetryUndo(path), ""):
                require(following == UndoStarted(path), f"6: the order to retry the undo of {path} has no effect")
            case Commanded(_, _, SkipUndo(path, reason), ""):
                require(following == UndoSkipped(path, reason), f"6: the order to skip the undo of {path} has no effect")
            case Commanded(_, _, MarkUndone(path), ""):
                require(following == UndoFinished(path), f"6: the word that {path} is undone has no effect")
            case Commanded(_, _, SetBreakpoint(path, after, clear), ""):
                (points.discard if clear else points.add)((path, after))
            case Commanded(_, _, Abort(), "") | Failed() | OutcomeUnknown():
                running = False
            case Succeeded(path) if running and (path, True) in points:
                require(following == BreakpointHit(path, after=True), f"6: the breakpoint after {path} is passed by")
            case _:
                pass


def check_history(graph: Graph, history: Iterable[Happening]) -> None:
    """Invariants 1, 2, 3, 6 and 7, and the part of 4 and 5 that a log shows."""
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
