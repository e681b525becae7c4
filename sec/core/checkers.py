"""The invariants of docs/chaos.md that a log and the dispatches show, as checkers: for tests, and for histories of real clusters.

Written on purpose without `SagaState`: they keep a model of their own, so that a mistake in the core is not repeated here.
"""

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import zip_longest

from sec_model import Graph, OnDeadline, Payload, UndoPolicy
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
    SetDeadline,
    SetMaxInFlight,
    Signal,
    SkipUndo,
    Step,
)
from sec_model.graph import NodeKind
from sec_model.versions import fits, only_offer

from sec.core.decide import Dispatch
from sec.core.records import (
    AttemptFailed,
    AttemptUnknown,
    BreakpointHit,
    Commanded,
    Created,
    DeadlinePassed,
    Done,
    Epoch,
    Failed,
    LogEntry,
    NodePath,
    Outcome,
    OutcomeUnknown,
    OwnerChanged,
    Phase,
    Pinned,
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
    """An invariant does not hold. The message begins with its number."""


@dataclass(frozen=True)
class Dispatched:
    """A dispatch as it left a driver of this epoch."""

    dispatch: Dispatch
    epoch: Epoch


Happening = LogEntry | Dispatched

_SETTLED = frozenset({"never", "failed", "given-up", "undone", "skipped"})
_BY_HAND = (UndoPolicy.MANUAL, UndoPolicy.CONFIRM)


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
        self.orders = Orders(graph)
        self.dues: dict[NodePath, tuple[int, OnDeadline | None]] = {}
        self.signals: dict[NodePath, Payload] = {}
        self.called: dict[str, str] = {}
        """As what actions are called, by what the definition asks for."""
        self.expired: set[int] = set()
        """Nodes that had begun when their deadline passed, and are to be given up."""
        self.then: OnDeadline | None = None
        """What the deadline of the saga brings."""
        points = [n.index for n in graph.nodes if self._policy(n.index) is UndoPolicy.POINT_OF_NO_RETURN]
        self.points = frozenset(points)
        self.behind = frozenset(below for point in points for below in _all_below(graph, point))

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
        was_unwinding = self.unwinding
        self._of_the_clock(entry.record, entry.time_us)
        self._of_the_graph(entry.record)
        self.orders.see(entry.record, in_flight)
        if self.unwinding and not was_unwinding:
            gone = [n for n in self.points if self.status[n] in ("open", "succeeded")]
            require(not gone, f"5: the saga unwinds past its point of no return, {self._paths(gone)}")
            self.dues.clear()
            self.status |= {n: "given-up" for n, s in self.status.items() if s == "waiting"}

    def _of_the_clock(self, record: Record, time_us: int) -> None:
        """What is due when, and that nothing comes before its time."""
        match record:
            case Created(deadline=deadline):
                self.then = None if deadline is None else deadline.then
            case StartRequested(due_us):
                if due_us:
                    self.dues[NodePath("")] = (due_us, self.then)
            case Started(path, due_us):
                if due_us:
                    deadline = self.graph.nodes[self.graph.index_of(path)].deadline
                    self.dues[path] = (due_us, None if deadline is None else deadline.then)
            case Commanded(_, _, SetDeadline(path, then, due_us), ""):
                self.dues.pop(path, None)
                if due_us:
                    self.dues[path] = (due_us, then)
            case DeadlinePassed(path):
                require(path in self.dues, f"6: there is no deadline of {path or 'the saga'}")
                self._in_time(path, time_us)
                self._passed(path, self.dues.pop(path)[1])
            case Succeeded(path):
                if self.graph.nodes[self.graph.index_of(path)].kind is NodeKind.TIMER:
                    self._in_time(path, time_us)
                self.dues.pop(path, None)
            case Failed(path) | OutcomeUnknown(path):
                self.dues.pop(path, None)
            case _:
                pass

    def _in_time(self, path: NodePath, time_us: int) -> None:
        due_us = self.dues[path][0]
        require(time_us >= due_us, f"6: what {path or 'the saga'} has at {due_us} comes at {time_us}")

    def _passed(self, path: NodePath, then: OnDeadline | None) -> None:
        if then is OnDeadline.PAUSE:
            self.orders.paused = True
        elif not any(self.status[n] in ("open", "succeeded") for n in self.points):
            if path and self.status[self.graph.index_of(path)] in ("open", "waiting"):
                self.expired.add(self.graph.index_of(path))
            else:
                self.unwinding = True

    def overdue(self, now_us: int) -> list[NodePath]:
        """What should have happened by now."""
        if self.unwinding or self.ended:
            return []
        late = [path for path, (due_us, _) in self.dues.items() if due_us <= now_us]
        return late + [self.graph.nodes[n].path for n in self.expired if self.status[n] == "waiting"]

    def _of_the_graph(self, record: Record) -> None:
        match record:
            case Created() | StartRequested() | OwnerChanged():
                pass
            case Commanded(_, _, command, refused):
                if isinstance(command, Abort) and not refused:
                    require(not self.unwinding, "6: a saga that unwinds is aborted")
                    self.unwinding = True
                if isinstance(command, Signal) and not refused:
                    require(command.node not in self.signals, f"6: {command.node} gets a second signal")
                    self.signals[command.node] = command.data
            case DeadlinePassed():
                require(not self.unwinding or record.node not in self.dues, "6: a deadline passes while the saga unwinds")
            case BreakpointHit(path, after):
                require(not self.unwinding, f"6: the breakpoint at {path} is reached while the saga unwinds")
                self._move(path, *(("succeeded", "succeeded") if after else ("never", "never")))
            case Pinned(asked, offer):
                require(not self.unwinding, f"2: {asked} is pinned while the saga unwinds")
                require(asked in self.graph.action_names() and fits(asked, offer), f"2: {asked} is pinned to {offer}")
                require(
                    asked not in self.called, f"2: {asked} is pinned to {offer}, and has been called as {self.called.get(asked)}"
                )
                self.called[asked] = offer
            case Started(path):
                node = self.graph.index_of(path)
                if (action := self.graph.nodes[node].action) is not None:
                    self.called.setdefault(action.action, only_offer(action.action) or action.action)
                require(not self.unwinding, f"2: {path} starts while the saga unwinds")
                late = [p for p in self.parents[node] if self.status[p] != "succeeded"]
                require(not late, f"2: {path} starts before the outcome of {self._paths(late)}")
                self._move(path, "never", "waiting" if self._waits(node) else "open")
            case Succeeded(path, output):
                node = self.graph.index_of(path)
                if self.graph.nodes[node].kind is NodeKind.SIGNAL:
                    require(self.signals.get(path) == output, f"6: {path} has not got {output} as its signal")
                self._move(path, "waiting" if self._waits(node) else "open", "succeeded")
            case Failed(path):
                node = self.graph.index_of(path)
                require(node not in self.behind, f"5: {path} fails for good behind the point of no return")
                self._move(path, "waiting" if self._waits(node) else "open", "failed")
                self.unwinding = True
            case AttemptFailed(path):
                require(self.graph.index_of(path) in self.behind, f"5: {path} fails and is tried again")
                self._move(path, "open", "open")
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
                require(self._policy(node) is UndoPolicy.ACTION, f"3: {path} has no undo action, and is undone")
                early = self._open_below(node)
                require(not early, f"3: {path} is undone before {self._paths(early)}")
                stuck = "undo-failed" in self.status.values()
                require(not stuck or self.status[node] == "undo-failed", f"7: the undo of {path} starts while the saga is stuck")
                self._move(path, "succeeded unknown undo-failed", "undoing")
            case UndoFinished(path):
                self._move(path, "undoing undo-failed", "undone")
            case UndoFailed(path):
                node = self.graph.index_of(path)
                if self._policy(node) in _BY_HAND:
                    early = self._open_below(node)
                    require(self.unwinding and not early, f"3: {path} is to be undone by hand before {self._paths(early)}")
                    busy = [n for n, s in self.status.items() if s in ("open", "undoing")]
                    require(not busy, f"7: an operator is asked about {path} while {self._paths(busy)} is in flight")
                    self._move(path, "succeeded unknown", "undo-failed")
                else:
                    self._move(path, "undoing", "undo-failed")
            case UndoSkipped(path):
                self._move(path, "undo-failed", "skipped")
            case Done(Outcome.DONE):
                left = [n for n, s in self.status.items() if s != "succeeded"]
                require(not left, f"5: the saga is done without {self._paths(left)}")
                self.ended = True
            case Done(Outcome.UNDONE):
                left = [n for n in self.status if not self._is_settled(n)]
                require(self.unwinding and not left, f"5: the saga is undone, but not {self._paths(left)}")
                self.ended = True

    def _dispatched(self, happening: Dispatched) -> None:
        dispatch = happening.dispatch
        path = self.graph.nodes[dispatch.node].path
        what = f"{dispatch.phase.value} of {path}"
        require(happening.epoch == self.epoch, f"7: the {what} is dispatched in epoch {happening.epoch} while {self.epoch} is on")
        expected = "open" if dispatch.phase is Phase.DO else "undoing"
        require(self.status[dispatch.node] == expected, f"2: the {what} is dispatched without its record")
        late = dispatch.phase is Phase.DO and dispatch.node in self.expired
        require(not late, f"6: the {what} is dispatched behind its deadline")
        self.orders.see_dispatch(NodePath(path), dispatch)

    def _move(self, path: str, expected: str, target: str) -> None:
        node = self.graph.index_of(path)
        require(self.status[node] in expected.split(), f"2: {path} goes from {self.status[node]} to {target}")
        self.status[node] = target

    def _policy(self, node: int) -> UndoPolicy | None:
        action = self.graph.nodes[node].action
        return None if action is None else action.undo

    def _waits(self, node: int) -> bool:
        return self.graph.nodes[node].action is None

    def _is_settled(self, node: int) -> bool:
        """It needs nothing more; what needs no undo settles with the last of its children."""
        if self.status[node] in _SETTLED:
            return True
        by_itself = self._policy(node) in (None, UndoPolicy.NONE_NEEDED) and self.status[node] in ("succeeded", "unknown")
        return by_itself and not self._open_below(node)

    def _open_below(self, node: int) -> list[int]:
        """The nearest nodes below that are to be waited for before this one is undone."""
        found, seen, todo = [], set[int](), [node]
        while todo:
            for child in self.children[todo.pop()] - seen:
                seen.add(child)
                by_itself = self._policy(child) in (None, UndoPolicy.NONE_NEEDED) and self.status[child] in ("succeeded", "unknown")
                if by_itself:
                    todo.append(child)
                elif self.status[child] not in _SETTLED:
                    found.append(child)
        return found

    def _paths(self, nodes: list[int]) -> str:
        return ", ".join(self.graph.nodes[n].path for n in nodes)


class Orders:
    """What operators have ordered, by the log alone, and whether it is kept."""

    def __init__(self, graph: Graph) -> None:
        self.waits = frozenset(n.path for n in graph.nodes if not n.instant and n.action is None)
        self.by_hand = frozenset(n.path for n in graph.nodes if n.action is not None and n.action.undo in _BY_HAND)
        self.ids: set[str] = set()
        self.paused = False
        self.steps = 0
        self.stepped: set[NodePath] = set()
        self.limit = 0
        self.breakpoints: set[tuple[NodePath, bool]] = {
            (n.path, False) for n in graph.nodes if n.action is not None and n.action.undo is UndoPolicy.CONFIRM
        }
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
                require(
                    path not in self.by_hand or not self.paused, f"7: an operator is asked about {path} while the saga is paused"
                )
                self._settled(path, Phase.UNDO)
                self.held.add(path)
            case AttemptFailed(path):
                self.errors.discard((path, Phase.DO))
                self.repeats.pop((path, Phase.DO), None)
            case UndoSkipped(path, reason):
                require(permitted == SkipUndo(path, reason), f"6: nobody ordered that the undo of {path} be skipped")
                self.held.discard(path)
                self._settled(path, Phase.UNDO)
            case Created() | StartRequested() | OwnerChanged() | AttemptUnknown() | DeadlinePassed() | Done():
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
                self.resumed()
            case Abort():
                self.resumed()
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
            case Signal() | SetDeadline():
                pass  # see `Checker`

    def resumed(self) -> None:
        self.paused, self.steps = False, 0
        self.stepped.clear()

    def _starts(self, path: NodePath, in_flight: int) -> None:
        room = path in self.waits or not self.limit or in_flight < self.limit
        require(room, f"6: {path} starts as number {in_flight + 1} in flight, of {self.limit}")
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
            case Commanded(_, _, Abort(), "") | Failed() | OutcomeUnknown() | DeadlinePassed():
                running = False  # behind a deadline nothing more can be told from the records alone
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
    """Invariant 5, of a saga that has ended: `effects` (full paths) is all or nothing, but for undos that an operator gave up, and for
    what needs no undo."""
    records = [e.record for e in log]
    if records[-1] == Done(Outcome.DONE):
        wanted = {n.path for n in graph.nodes if n.action is not None}
        require(effects == wanted, f"5: the saga is done, but the effects differ at {sorted(effects ^ wanted)}")
    else:
        skipped = {str(r.node) for r in records if isinstance(r, UndoSkipped)}
        skipped |= {n.path for n in graph.nodes if n.action is not None and n.action.undo is UndoPolicy.NONE_NEEDED}
        require(effects <= skipped, f"5: the saga is undone, but {sorted(effects - skipped)} are left")


def require(holds: bool, message: str) -> None:
    if not holds:
        raise Violated(message)


def _all_below(graph: Graph, start: int) -> set[int]:
    found: set[int] = set()
    todo = [start]
    while todo:
        for child in graph.nodes[todo.pop()].children:
            if child not in found:
                found.add(child)
                todo.append(child)
    return found


def _actions_next_to(graph: Graph, start: int, *, up: bool) -> set[int]:
    """The nearest nodes with records above (below) a node; constants, starts and ends of subsagas are looked through."""
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
