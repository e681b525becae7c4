"""The state of one saga, and `apply`, the only thing that changes it. Recovery is a fold of `apply` over the log; there is no other path.

`apply` checks everything before it changes anything: an illegal record raises `IllegalTransition` and leaves the state as it was. Its cost grows
with the neighbours of the node that the record names, not with the saga, but for the one record that begins the unwinding.

A *rehearsal* lets `sec.core.decide` try records and then take them all back: every change goes through `_put`, `_drop` and `_set`,
which keep a journal while a rehearsal is on.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sec_model import Graph, Payload
from sec_model.commands import Abort
from sec_model.graph import GraphNode

from sec.core.controls import Controls, refusal
from sec.core.errors import CorruptLog, IllegalTransition
from sec.core.records import (
    AttemptUnknown,
    BreakpointHit,
    Commanded,
    Created,
    Done,
    Epoch,
    Failed,
    Fault,
    LogEntry,
    NodePath,
    NodeRecord,
    Outcome,
    OutcomeUnknown,
    OwnerChanged,
    Phase,
    Record,
    SagaId,
    SecNodeName,
    Started,
    StartRequested,
    Succeeded,
    UndoFailed,
    UndoFinished,
    UndoSkipped,
    UndoStarted,
)
from sec.core.transitions import NODE_TRANSITIONS, SAGA_ACCEPTS, SETTLED, Course, Mark

_MISSING = object()


@dataclass(frozen=True, slots=True)
class Tries:
    """Calls without a known outcome of the phase that a node is in; `last` is the latest of them."""

    count: int
    spent_s: float
    last: "Mishap | None" = None


NO_TRIES = Tries(0, 0.0)


@dataclass(frozen=True, slots=True)
class Mishap:
    """Something that went wrong, and the sequence number of the record that says so."""

    sequence: int
    node: NodePath
    phase: Phase
    error: Fault


class SagaState:
    """What the log of one saga implies. Read it freely; change it with `apply` alone.

    Nodes are numbers of `graph`. `startable` and `undoable` are sets of the nodes whose action (undo action)
    may be dispatched as far as the graph is concerned; `in_flight` are those with a start but no outcome in the log.
    """

    def __init__(self, saga_id: SagaId, graph: Graph) -> None:
        self.saga_id = saga_id
        self.graph = graph
        self.course = Course.NONEXISTENT
        self.uid = ""
        self.definition_hash = ""
        self.epoch = Epoch(0)
        self.owner = SecNodeName("")
        self.next_sequence = 1
        self.marks = [Mark.NEVER_STARTED] * len(graph.nodes)
        self.startable: dict[int, None] = {}
        self.undoable: dict[int, None] = {}
        self.in_flight: dict[int, Phase] = {}
        self.undo_failed: dict[int, None] = {}
        self.outputs: dict[int, Payload] = {}
        self.tries: dict[int, Tries] = {}
        self.mishaps: tuple[Mishap, ...] = ()
        self.controls = Controls()
        self.commands: frozenset[str] = frozenset()
        """Ids of the commands that were taken up or turned down."""
        self._parents_left = [len(n.parents) for n in graph.nodes]
        self._children_open = [0] * len(graph.nodes)
        self._unsettled = 0
        self._journal: list[tuple[Any, Any, Any]] | None = None

    # what can be read

    def output_of(self, index: int) -> Payload:
        """The output of a node that has succeeded. A subsaga's is that of its final node."""
        node = self.graph.nodes[index]
        while node.output_of is not None:
            node = self.graph.nodes[node.output_of]
        if node.constant is not None:
            return node.constant
        return self.outputs[node.index]

    def idempotency_key(self, index: int) -> str:
        """Names the effect of a node, over retries and owners, for its action and its undo action alike."""
        return f"{self.uid}/{self.graph.nodes[index].path}"

    @property
    def unwound(self) -> bool:
        """The saga is unwinding, and nothing is left to undo or to wait for."""
        return self.course is Course.UNWINDING and self._unsettled == 0

    # what changes it

    def apply(self, record: Record) -> None:
        """Takes one record. Raises `IllegalTransition`, and changes nothing, when the record does not fit."""
        if type(record) not in SAGA_ACCEPTS[self.course]:
            raise self._illegal(record, f"the saga is {self.course.value}")
        match record:
            case Created(uid, definition_hash):
                self._set("uid", uid)
                self._set("definition_hash", definition_hash)
                self._set("course", Course.CREATED)
            case StartRequested():
                self._set("course", Course.RUNNING)
                for node in self.graph.nodes:
                    if not node.parents:
                        self._all_parents_succeeded(node)
            case OwnerChanged(epoch, sec_node):
                if epoch <= self.epoch:
                    raise self._illegal(record, f"the epoch before it is {self.epoch}")
                self._set("epoch", epoch)
                self._set("owner", sec_node)
            case Commanded():
                self._commanded(record)
            case BreakpointHit(node, after):
                if (node, after) not in self.controls.breakpoints:
                    raise self._illegal(record, "there is no such breakpoint")
                self._set("controls", self.controls.hit(node, after))
            case Done(outcome):
                self._done(record, outcome)
            case _:
                self._apply_to_node(record)
        self._set("next_sequence", self.next_sequence + 1)

    def apply_entry(self, entry: LogEntry) -> None:
        """Takes a record out of a log. Raises `CorruptLog`, and changes nothing, when it does not fit."""
        problem = None
        if entry.sequence != self.next_sequence:
            problem = f"record {entry.sequence} stands where record {self.next_sequence} belongs"
        elif entry.epoch < self.epoch:
            problem = f"record {entry.sequence} has epoch {entry.epoch}, but a record before it has {self.epoch}"
        elif entry.epoch == self.epoch and entry.writer != self.owner:
            problem = (
                f'record {entry.sequence} was written by "{entry.writer}" in epoch {entry.epoch}, which is that of "{self.owner}"'
            )
        elif isinstance(entry.record, Created | StartRequested):
            pass  # what stands before the first owner's records begins an epoch by itself
        elif entry.epoch > self.epoch and entry.record != OwnerChanged(entry.epoch, entry.writer):
            problem = f'record {entry.sequence} begins epoch {entry.epoch} of "{entry.writer}" without an OwnerChanged that says so'
        elif isinstance(entry.record, OwnerChanged) and entry.record != OwnerChanged(entry.epoch, entry.writer):
            problem = (
                f'record {entry.sequence} begins epoch {entry.record.epoch} of "{entry.record.sec_node}", '
                f'but was written by "{entry.writer}" in epoch {entry.epoch}'
            )
        if problem is not None:
            raise CorruptLog(f'The log of saga "{self.saga_id}" cannot be folded: {problem}.')
        try:
            self.apply(entry.record)
        except IllegalTransition as error:
            raise CorruptLog(f'The log of saga "{self.saga_id}" cannot be folded. {error}') from error
        self._set("epoch", entry.epoch)
        self._set("owner", entry.writer)

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Everything applied inside is taken back at the end, however it ends."""
        assert self._journal is None, "rehearsals do not nest"
        journal: list[tuple[Any, Any, Any]] = []
        self._journal = journal
        try:
            yield
        finally:
            self._journal = None
            for container, key, old in reversed(journal):
                if old is _MISSING:
                    del container[key]
                else:
                    container[key] = old

    # the rules for commands

    def _commanded(self, record: Commanded) -> None:
        if record.command_id in self.commands:
            raise self._illegal(record, f'the command "{record.command_id}" has been taken up already')
        if not record.refused:
            because = refusal(self, record.command)
            if because:
                raise self._illegal(record, because)
            self._set("controls", self.controls.ordered(record.command))
            if isinstance(record.command, Abort):
                fault = Fault(record.command.reason or "An operator aborted the saga.", "aborted")
                self._set("mishaps", (*self.mishaps, Mishap(self.next_sequence, NodePath(""), Phase.DO, fault)))
                self._begin_unwinding()
        self._set("commands", self.commands | {record.command_id})

    # the rules for records of nodes

    def _apply_to_node(self, record: NodeRecord) -> None:
        index = self.graph.by_path.get(record.node)
        if index is None or self.graph.nodes[index].instant:
            raise self._illegal(record, f'the saga has no node "{record.node}" that has an action')
        mark = self.marks[index]
        target = NODE_TRANSITIONS.get((mark, type(record)))
        if target is None:
            raise self._illegal(record, f"the node is {mark.value}")
        match record:
            case Started():
                if index not in self.startable:
                    raise self._illegal(record, "not all of its parents have succeeded")
                self._require_leave_to_start(record)
                self._set("controls", self.controls.started(index))
                self._drop(self.startable, index)
                self._put(self.in_flight, index, Phase.DO)
                self._set("_unsettled", self._unsettled + 1)
            case Succeeded(_, output):
                self._put(self.outputs, index, output)
            case AttemptUnknown(node, phase, attempt, error, spent_s):
                expected = self.tries.get(index, NO_TRIES).count + 1
                if phase is not self.in_flight[index] or attempt != expected:
                    raise self._illegal(record, f"attempt {expected} of its {self.in_flight[index].value} comes next")
                last = Mishap(self.next_sequence, node, phase, error)
                self._put(self.tries, index, Tries(attempt, spent_s, last))
            case UndoStarted():
                if index not in self.undoable and mark is not Mark.UNDO_FAILED:
                    raise self._illegal(record, "not all of its children are undone, abandoned or failed")
                if self.course is Course.STUCK and mark is not Mark.UNDO_FAILED:
                    raise self._illegal(record, "the saga is stuck")
                if mark is Mark.UNDO_FAILED:  # an operator wants this one now
                    self._set("controls", self.controls.exempted(index))
                else:
                    self._require_leave_to_start(record)
                    self._set("controls", self.controls.started(index))
                self._drop(self.undoable, index)
                self._drop(self.undo_failed, index)
                self._put(self.in_flight, index, Phase.UNDO)
            case UndoSkipped() | UndoFinished():
                self._drop(self.undo_failed, index)
            case Failed() | OutcomeUnknown() | UndoFailed():
                pass
        self._put(self.marks, index, target)
        self._note_mishap(record)
        if target is not Mark.STARTED and target is not Mark.UNDO_STARTED:
            phase = self.in_flight.get(index, Phase.UNDO)
            self._set("controls", self.controls.settled(index, record.node, phase))
            self._drop(self.in_flight, index)
            self._drop(self.tries, index)
            self._outcome(self.graph.nodes[index], target)
        self._set("course", self._course_after())

    def _require_leave_to_start(self, record: NodeRecord) -> None:
        if self.controls.paused and not self.controls.steps:
            raise self._illegal(record, "the saga is paused")

    def _outcome(self, node: GraphNode, mark: Mark) -> None:
        """What an outcome means for the nodes around."""
        match mark:
            case Mark.SUCCEEDED if self.course is Course.RUNNING:
                self._release_children(node)
            case Mark.SUCCEEDED | Mark.OUTCOME_UNKNOWN if self.course is not Course.RUNNING:
                self._undo_if_free(node)
            case Mark.FAILED | Mark.OUTCOME_UNKNOWN:
                if mark is Mark.FAILED:
                    self._set("_unsettled", self._unsettled - 1)
                if self.course is Course.RUNNING:
                    self._begin_unwinding()
                else:
                    self._settled(node)
            case Mark.UNDO_FINISHED | Mark.UNDO_SKIPPED:
                self._set("_unsettled", self._unsettled - 1)
                self._settled(node)
            case Mark.UNDO_FAILED:
                self._put(self.undo_failed, node.index, None)
            case _:
                raise AssertionError(mark)

    def _course_after(self) -> Course:
        if self.course is Course.UNWINDING and self.undo_failed:
            return Course.STUCK
        if self.course is Course.STUCK and not self.undo_failed:
            return Course.UNWINDING
        return self.course

    def _done(self, record: Done, outcome: Outcome) -> None:
        if outcome is Outcome.DONE:
            if self.course is not Course.RUNNING or self.marks[self.graph.final] is not Mark.SUCCEEDED:
                raise self._illegal(record, "its final node has not succeeded")
            self._set("course", Course.DONE)
        else:
            if not self.unwound:
                raise self._illegal(record, "it has not been unwound")
            self._set("course", Course.UNDONE)

    # forward: counts of parents

    def _release_children(self, node: GraphNode) -> None:
        """The node has succeeded: a child whose last parent it was may start. A loop, since instant nodes may follow each other for long."""
        open_nodes = [node]
        while open_nodes:
            for child in open_nodes.pop().children:
                left = self._parents_left[child] - 1
                self._put(self._parents_left, child, left)
                if left == 0:
                    self._free(self.graph.nodes[child], open_nodes)

    def _all_parents_succeeded(self, node: GraphNode) -> None:
        instants: list[GraphNode] = []
        self._free(node, instants)
        for instant in instants:
            self._release_children(instant)

    def _free(self, node: GraphNode, instants: list[GraphNode]) -> None:
        if node.instant:
            self._put(self.marks, node.index, Mark.SUCCEEDED)
            self._set("_unsettled", self._unsettled + 1)
            instants.append(node)
        else:
            self._put(self.startable, node.index, None)

    # backward: counts of children

    def _begin_unwinding(self) -> None:
        """From here on nothing starts. Nodes that never did are abandoned, so only the others are counted."""
        self._set("course", Course.UNWINDING)
        for index in list(self.startable):
            self._drop(self.startable, index)
        for node in self.graph.nodes:
            count = sum(not self._needs_nothing(child) for child in node.children)
            self._put(self._children_open, node.index, count)
        for node in self.graph.nodes:
            self._undo_if_free(node)

    def _needs_nothing(self, index: int) -> bool:
        mark = self.marks[index]
        return mark is Mark.NEVER_STARTED or mark in SETTLED

    def _undo_if_free(self, node: GraphNode) -> None:
        if self._children_open[node.index] or self.marks[node.index] not in (Mark.SUCCEEDED, Mark.OUTCOME_UNKNOWN):
            return
        if node.instant:
            self._put(self.marks, node.index, Mark.UNDO_FINISHED)
            self._set("_unsettled", self._unsettled - 1)
            self._settled(node)
        else:
            self._put(self.undoable, node.index, None)

    def _settled(self, node: GraphNode) -> None:
        """The node needs nothing more: a parent whose last open child it was may be undone. A loop for the same reason as above."""
        settled = [node]
        while settled:
            for parent_index in settled.pop().parents:
                left = self._children_open[parent_index] - 1
                self._put(self._children_open, parent_index, left)
                parent = self.graph.nodes[parent_index]
                if left == 0 and parent.instant and self.marks[parent_index] is Mark.SUCCEEDED:
                    self._put(self.marks, parent_index, Mark.UNDO_FINISHED)
                    self._set("_unsettled", self._unsettled - 1)
                    settled.append(parent)
                elif left == 0:
                    self._undo_if_free(parent)

    # small things

    def _note_mishap(self, record: NodeRecord) -> None:
        match record:
            case Failed(node, error) | OutcomeUnknown(node, error):
                mishap = Mishap(self.next_sequence, node, Phase.DO, error)
            case UndoFailed(node, error):
                mishap = Mishap(self.next_sequence, node, Phase.UNDO, error)
            case _:
                return
        self._set("mishaps", (*self.mishaps, mishap))

    def _illegal(self, record: Record, because: str) -> IllegalTransition:
        node = f' of node "{record.node}"' if isinstance(record, NodeRecord) else ""
        return IllegalTransition(
            f'Saga "{self.saga_id}" cannot take the record {type(record).__name__}{node} as number {self.next_sequence}: {because}.'
        )

    def _put(self, container: Any, key: Any, value: Any) -> None:
        if self._journal is not None:
            old = container.get(key, _MISSING) if isinstance(container, dict) else container[key]
            self._journal.append((container, key, old))
        container[key] = value

    def _drop(self, container: dict[int, Any], key: int) -> None:
        old = container.pop(key, _MISSING)
        if old is not _MISSING and self._journal is not None:
            self._journal.append((container, key, old))

    def _set(self, name: str, value: Any) -> None:
        self._put(self.__dict__, name, value)


def fold(saga_id: SagaId, graph: Graph, entries: Iterable[LogEntry]) -> SagaState:
    """The state that a log implies. Raises `CorruptLog`, which says at which record the log stops making sense.

    Besides the rules of `apply` a log must have every sequence number once, epochs that never go back, and one writer for each epoch.
    """
    state = SagaState(saga_id, graph)
    for entry in entries:
        state.apply_entry(entry)
    return state
