"""The state of one saga, and `apply`, the only thing that changes it. Recovery is a fold of `apply` over the log; there is no other path.

`apply` checks everything before it changes anything: an illegal record raises `IllegalTransition` and leaves the state as it was. Its cost grows
with the neighbours of the node that the record names, not with the saga, but for the one record that begins the unwinding.

Every change goes through `_put`, `_drop` and `_set`, so that records can be tried and taken back (`sec.core.rehearsal`).
"""

from collections.abc import Iterable

from msgspec import Struct
from sec_model import Deadline, Graph, OnDeadline, Payload
from sec_model.commands import Abort, Pause, SetDeadline, Signal
from sec_model.graph import GraphNode, NodeKind
from sec_model.versions import fits, has_version, newest, only_offer

from sec.core.controls import NO_CONTROLS, Controls
from sec.core.errors import CorruptLog, IllegalTransition
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
    Fault,
    LogEntry,
    NodePath,
    NodeRecord,
    Outcome,
    OutcomeUnknown,
    OwnerChanged,
    Phase,
    Pinned,
    Record,
    SagaId,
    SagaRecord,
    SecNodeName,
    Started,
    StartRequested,
    Succeeded,
    UndoFailed,
    UndoFinished,
    UndoSkipped,
    UndoStarted,
)
from sec.core.rehearsal import Rehearsed
from sec.core.transitions import NODE_TRANSITIONS, SAGA_ACCEPTS, SETTLED, Course, Mark

_RUNNING, _UNWINDING, _DO = Course.RUNNING, Course.UNWINDING, Phase.DO
_STARTED, _UNDO_STARTED, _SUCCEEDED = Mark.STARTED, Mark.UNDO_STARTED, Mark.SUCCEEDED
"""Members that every record comes by: to look one up in its `Enum` takes longer than most of what is done with it."""


class Tries(Struct, frozen=True, gc=False):
    """Calls without an outcome of the phase that a node is in; `last` is the latest of them."""

    count: int
    spent_s: float
    last: "Mishap | None" = None


NO_TRIES = Tries(0, 0.0)


class Mishap(Struct, frozen=True, gc=False):
    """Something that went wrong, and the sequence number of the record that says so."""

    sequence: int
    node: NodePath
    phase: Phase
    error: Fault


class Due(Struct, frozen=True, gc=False):
    """An instant by the wall clock, in microseconds, and what happens then. None: a timer has waited long enough."""

    us: int
    then: OnDeadline | None


class SagaState(Rehearsed):
    """What the log of one saga implies. Read it freely; change it with `apply` alone, or with `repeat`.

    Nodes are numbers of `graph`. `startable` and `undoable` are sets of the nodes that may be started (undone)
    as far as the graph is concerned; `in_flight` are actions with a start but no outcome in the log, `waiting` the signals and timers.
    """

    def __init__(self, saga_id: SagaId, graph: Graph) -> None:
        super().__init__()
        self.saga_id = saga_id
        self.graph = graph
        self.course = Course.NONEXISTENT
        self.uid = ""
        self.definition_hash = ""
        self.epoch = Epoch(0)
        self.owner = SecNodeName("")
        self.marks = [Mark.NEVER_STARTED] * len(graph.nodes)
        self.startable: dict[int, None] = {}
        self.undoable: dict[int, None] = {}
        self.in_flight: dict[int, Phase] = {}
        self.waiting: dict[int, None] = {}
        self.signals: dict[int, Payload] = {}
        """What was sent to signal nodes, be they reached or not."""
        self.deadline: Deadline | None = None
        self.dues: dict[NodePath, Due] = {}
        """What the clock will bring, by node (empty: the saga), while the saga goes forward."""
        self.deadlines_set: dict[NodePath, None] = {}
        """Nodes of which an operator has said when they are due, or that they are not."""
        self.expired: dict[int, None] = {}
        """Nodes that have begun, and are to be given up: their deadline has passed."""
        self.failures: dict[int, int] = {}
        """How often an action behind a point of no return has failed."""
        self.pins: dict[str, str] = {}
        """What its actions are called as, by what the definition asks for: those that a record has pinned, or that a node was started for."""
        self.undo_failed: dict[int, None] = {}
        self.outputs: dict[int, Payload] = {}
        self.tries: dict[int, Tries] = {}
        self.mishaps: tuple[Mishap, ...] = ()
        self.controls = NO_CONTROLS
        self.commands: frozenset[str] = frozenset()
        """Ids of the commands that were taken up or turned down."""
        self._parents_left = list(graph.parent_counts)
        self._children_open: list[int] = []
        self._unsettled = 0
        """Of nodes that have begun, how many need something more; both are there once the saga unwinds."""

    # what can be read

    def output_of(self, index: int) -> Payload:
        """The output of a node that has succeeded. A subsaga's is that of its final node."""
        node = self.graph.nodes[index]
        while node.output_of is not None:
            node = self.graph.nodes[node.output_of]
        if node.constant is not None:
            return node.constant
        return self.outputs[node.index]

    def offer_of(self, asked: str, offered: frozenset[str] | None) -> str | None:
        """The offer by which an action can be called now, as the definition asks for it. None: nobody offers it, or not in the version that the saga is pinned to.
        `offered` None: everything is."""
        pinned = self.pins.get(asked)
        if offered is None:
            return pinned or only_offer(asked) or asked
        return newest(asked, offered) if pinned is None else pinned if pinned in offered else None

    def idempotency_key(self, index: int) -> str:
        """Names the effect of a node, over retries and owners, for its action and its undo action alike.

        A failure says that the effect of this name never will be, so what is tried again after it has another name.
        """
        failures = self.failures.get(index, 0)
        return f"{self.uid}/{self.graph.nodes[index].path}" + (f"~{failures + 1}" if failures else "")

    @property
    def point_passed(self) -> int | None:
        """The node with which the saga has come to its point of no return: it has taken effect, or may have."""
        marks = self.marks
        return next((i for i in self.graph.points_of_no_return if marks[i] in (Mark.STARTED, Mark.SUCCEEDED)), None)

    @property
    def unwound(self) -> bool:
        """The saga is unwinding, and nothing is left to undo or to wait for."""
        return self.course is Course.UNWINDING and self._unsettled == 0

    # what changes it

    def apply(self, record: Record) -> None:
        """Takes one record. Raises `IllegalTransition`, and changes nothing, when the record does not fit."""
        if type(record) not in SAGA_ACCEPTS[self.course]:
            raise self._illegal(record, f"the saga is {self.course.value}")
        if isinstance(record, NodeRecord):
            self._apply_to_node(record)
        else:
            self._apply_to_saga(record)
        self.next_sequence += 1

    def _apply_to_saga(self, record: SagaRecord) -> None:
        match record:
            case Created(uid, definition_hash, deadline):
                self._set("uid", uid)
                self._set("definition_hash", definition_hash)
                self._set("deadline", deadline)
                if self.graph.confirmed:
                    confirmed_first = frozenset((self.graph.nodes[i].path, False) for i in self.graph.confirmed)
                    self._set("controls", Controls(breakpoints=confirmed_first))
                self._set("course", Course.CREATED)
            case StartRequested(due_us):
                if (due_us != 0) != (self.deadline is not None):
                    raise self._illegal(record, "an instant for its deadline belongs to a saga with a deadline, and to no other")
                self._set("course", Course.RUNNING)
                if self.deadline is not None:
                    self._put(self.dues, NodePath(""), Due(due_us, self.deadline.then))
                for index in self.graph.roots:
                    self._all_parents_succeeded(self.graph.nodes[index])
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
                self._set("controls", self.controls.hit(node, after, self._why_paused_at(node, after)))
            case DeadlinePassed(node):
                self._deadline_passed(record, node)
            case Pinned():
                self._pinned(record)
            case Done(outcome):
                self._done(record, outcome)

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

    # the rules for commands

    def _commanded(self, record: Commanded) -> None:
        if record.command_id in self.commands:
            raise self._illegal(record, f'the command "{record.command_id}" has been taken up already')
        if not record.refused:
            match record.command:
                case Abort(reason):
                    if self.course is not Course.RUNNING or self.point_passed is not None:
                        raise self._illegal(record, "it cannot begin to unwind")
                    self._unwind_for(NodePath(""), Fault(reason or "An operator aborted the saga.", "aborted"))
                case Signal(node, data):
                    self._put(self.signals, self._waiting_node(record, node), data)
                case SetDeadline(node, then, due_us):
                    self._put(self.deadlines_set, node, None)
                    if due_us:
                        self._put(self.dues, node, Due(due_us, then))
                    else:
                        self._drop(self.dues, node)
                case _:
                    pass
            self._set("controls", self.controls.ordered(record.command))
        self._set("commands", self.commands | {record.command_id})

    def _waiting_node(self, record: Record, path: NodePath) -> int:
        index = self.graph.by_path.get(path)
        if index is None or self.graph.nodes[index].kind is not NodeKind.SIGNAL or index in self.signals:
            raise self._illegal(record, f'no node "{path}" waits for a signal')
        return index

    def _why_paused_at(self, node: NodePath, after: bool) -> str:
        if not after and self.graph.nodes[self.graph.by_path[node]].needs_confirmation:
            return f'Node "{node}" cannot be undone by a call: resume the saga to let it run, or abort it.'
        return f'Breakpoint {"after" if after else "before"} node "{node}".'

    # the rules for versions

    def _pinned(self, record: Pinned) -> None:
        if record.action not in self.graph.to_pin:
            raise self._illegal(record, f'it does not ask for "{record.action}", or there is one offer alone that fits')
        if record.action in self.pins:
            raise self._illegal(record, f'it calls "{record.action}" as "{self.pins[record.action]}" already')
        if not has_version(record.offer) or not fits(record.action, record.offer):
            raise self._illegal(record, f'"{record.offer}" is no version of "{record.action}"')
        self._put(self.pins, record.action, record.offer)

    # the rules for deadlines

    def _deadline_passed(self, record: DeadlinePassed, path: NodePath) -> None:
        due = self.dues.get(path)
        if due is None or due.then is None:
            raise self._illegal(record, f'there is no deadline of "{path}"' if path else "it has no deadline")
        self._drop(self.dues, path)
        what = f'Node "{path}"' if path else "The saga"
        fault = Fault(f"{what} did not end by its deadline.", "deadline_passed")
        if due.then is OnDeadline.PAUSE:
            if not self.controls.paused:
                self._set("controls", self.controls.ordered(Pause(fault.message)))
        elif self.point_passed is None:
            index = self.graph.by_path.get(path)
            if index in self.in_flight or index in self.waiting:
                self._put(self.expired, index, None)
            else:
                self._unwind_for(path, fault)

    def _unwind_for(self, node: NodePath, fault: Fault) -> None:
        """Unwinds for another reason than an outcome."""
        self._set("mishaps", (*self.mishaps, Mishap(self.next_sequence, node, Phase.DO, fault)))
        self._begin_unwinding()

    # the rules for records of nodes

    def _apply_to_node(self, record: NodeRecord) -> None:
        index = self.graph.by_path.get(record.node)
        if index is None or self.graph.nodes[index].instant:
            raise self._illegal(record, f'the saga has no node "{record.node}" that has records')
        mark, node = self.marks[index], self.graph.nodes[index]
        target = NODE_TRANSITIONS.get((mark, type(record)))
        if target is None:
            raise self._illegal(record, f"the node is {mark.value}")
        match record:  # without patterns of fields, which take their time, where most records come by
            case Started():
                self._start(record, node, record.due_us)
            case Succeeded():
                output = record.output
                if node.waits and node.kind is NodeKind.SIGNAL and self.signals.get(index) != output:
                    raise self._illegal(record, "it has not got this as its signal")
                self._put(self.outputs, index, output)
            case AttemptUnknown(_, phase, attempt, error, spent_s):
                self._attempted(record, node, phase, attempt, error, spent_s)
            case AttemptFailed(path, attempt, error, spent_s):
                if not node.forward_only:
                    raise self._illegal(record, "it is not behind a point of no return")
                self._attempted(record, node, Phase.DO, attempt, error, spent_s)
                self._put(self.failures, index, self.failures.get(index, 0) + 1)
                self._set("controls", self.controls.answered(path, Phase.DO))
            case UndoStarted():
                if not node.has_undo_action:
                    raise self._illegal(record, "it has no undo action")
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
            case Failed():
                if node.forward_only:
                    raise self._illegal(record, "it is behind a point of no return")
            case OutcomeUnknown():
                if node.never_given_up or node.waits:
                    raise self._illegal(record, "it is not to be given up")
            case UndoFailed():
                if mark is not Mark.UNDO_STARTED and not (node.undone_by_hand and index in self.undoable):
                    raise self._illegal(record, "it is not to be undone by hand, not yet or never")
                self._drop(self.undoable, index)
        self._put(self.marks, index, target)
        if target is not _STARTED and target is not _UNDO_STARTED:
            if target is not _SUCCEEDED:
                self._note_mishap(record)
            if self.controls is not NO_CONTROLS:
                phase = self.in_flight.get(index, Phase.UNDO)
                self._set_controls(self.controls.answered(record.node, phase).settled(index))
            for of_the_phase in (self.in_flight, self.waiting, self.expired, self.tries):
                if index in of_the_phase:
                    self._drop(of_the_phase, index)
            if self.dues:
                self._drop(self.dues, record.node)
            self._outcome(node, target)
        if self.course is not _RUNNING and (course := self._course_after()) is not self.course:
            self._set("course", course)

    def _start(self, record: Started, node: GraphNode, due_us: int) -> None:
        if node.index not in self.startable:
            raise self._illegal(record, "not all of its parents have succeeded")
        if self.controls.paused:
            self._require_leave_to_start(record)
            self._set_controls(self.controls.started(node.index))
        self._drop(self.startable, node.index)
        if node.action is None:
            self._put(self.waiting, node.index, None)
        else:
            self._put(self.in_flight, node.index, _DO)
            asked = node.action.action
            if asked not in self.pins:  # it is called without a version, or there is one offer alone that fits
                self._put(self.pins, asked, only_offer(asked) or asked)
        if due_us:
            self._put(self.dues, record.node, Due(due_us, None if node.deadline is None else node.deadline.then))

    def _attempted(self, record: NodeRecord, node: GraphNode, phase: Phase, attempt: int, error: Fault, spent_s: float) -> None:
        """A call has ended and another one is to come, or the node is given up."""
        now = self.in_flight.get(node.index)
        expected = self.tries.get(node.index, NO_TRIES).count + 1
        if phase is not now or attempt != expected:
            raise self._illegal(record, f"attempt {expected} of its {now.value} comes next" if now else "it is never called")
        last = Mishap(self.next_sequence, record.node, phase, error)
        self._put(self.tries, node.index, Tries(attempt, spent_s, last))

    def _require_leave_to_start(self, record: NodeRecord) -> None:
        if self.controls.paused and not self.controls.steps:
            raise self._illegal(record, "the saga is paused")

    def _outcome(self, node: GraphNode, mark: Mark) -> None:
        """What an outcome means for the nodes around."""
        if mark is _SUCCEEDED and self.course is _RUNNING:
            self._release_children(node)
            return
        match mark:
            case Mark.SUCCEEDED | Mark.OUTCOME_UNKNOWN if self.course is not Course.RUNNING:
                self._undo_if_free(node)
            case Mark.FAILED | Mark.OUTCOME_UNKNOWN if self.course is Course.RUNNING:
                self._begin_unwinding()
            case Mark.FAILED:
                self._set("_unsettled", self._unsettled - 1)
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
            self._put(self.marks, node.index, _SUCCEEDED)
            instants.append(node)
        else:
            self._put(self.startable, node.index, None)

    # backward: counts of children

    def _begin_unwinding(self) -> None:
        """From here on nothing starts. Nodes that never did are abandoned, so only the others are counted."""
        self._set("course", Course.UNWINDING)
        for path in list(self.dues):
            self._drop(self.dues, path)
        for index in list(self.waiting):
            self._drop(self.waiting, index)
            self._drop(self.expired, index)
            self._put(self.marks, index, Mark.GIVEN_UP)
        for index in list(self.startable):
            self._drop(self.startable, index)
        needing = [not self._needs_nothing(index) for index in range(len(self.marks))]
        self._set("_children_open", [sum(needing[child] for child in node.children) for node in self.graph.nodes])
        self._set("_unsettled", sum(needing))
        for node in self.graph.nodes:
            self._undo_if_free(node)

    def _needs_nothing(self, index: int) -> bool:
        mark = self.marks[index]
        return mark is Mark.NEVER_STARTED or mark in SETTLED

    def _undo_if_free(self, node: GraphNode) -> None:
        if self._children_open[node.index] or self.marks[node.index] not in (Mark.SUCCEEDED, Mark.OUTCOME_UNKNOWN):
            return
        if node.needs_no_undo:
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
                if left == 0 and parent.needs_no_undo and self.marks[parent_index] in (Mark.SUCCEEDED, Mark.OUTCOME_UNKNOWN):
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

    def _set_controls(self, controls: Controls) -> None:
        if controls is not self.controls:  # most records leave them as they are
            self._set("controls", controls)


def fold(saga_id: SagaId, graph: Graph, entries: Iterable[LogEntry]) -> SagaState:
    """The state that a log implies. Raises `CorruptLog`, which says at which record the log stops making sense.

    Besides the rules of `apply` a log must have every sequence number once, epochs that never go back, and one writer for each epoch.
    """
    state = SagaState(saga_id, graph)
    for entry in entries:
        state.apply_entry(entry)
    return state
