"""Checks what a chaos run left behind against the invariants of docs/chaos.md. Pure: evidence in, violations out.

The order within one log is the order of its records. Between a log and what the action servers saw there is only the clock of the
machine, and what was under way when a process was stopped arrives late; so these checks leave room (`SLACK_US`) and look away while the
processes concerned were at fault. They can miss a violation, but do not invent one.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

from google.protobuf.json_format import MessageToDict
from sec_model import Graph, compile_graph
from sec_model.commands import RetryUndo, Step
from sec_model.commands_codec import command_to_proto

from sec.chaos.history import Answer, ClientCall, Delivery, Event, Fault, Milestone, Observed, Read
from sec.core.checkers import Checker, Violated, check_all_or_none, check_settled
from sec.core.errors import SagaError
from sec.core.records import (
    Commanded,
    Done,
    Epoch,
    Failed,
    LogEntry,
    OwnerChanged,
    Started,
    UndoFinished,
    UndoSkipped,
    UndoStarted,
)
from sec.debug import ExportedLog, recover

_OfASaga = TypeVar("_OfASaga", Delivery, "Had")

SLACK_US = 2_000_000
"""How long a call may be on its way, and a command may wait for an owner that lives."""

UNDER_WAY_US = 500_000
"""How long before a process was stopped what it was about to send may have been decided: it is sent when the process goes on, whatever has
become of its lease, and action servers refuse it by its epoch. No check within the process can prevent that."""

INVARIANTS = {
    0: "The run is complete, and no process ended by itself.",
    1: "Epochs never go back, and each has one writer.",
    2: "Nothing is dispatched before its record, and no child before its parents' outcome.",
    3: "Nothing is undone before its children, and nothing that failed.",
    4: "No acknowledged saga is lost: all ended, or are stuck with the reason.",
    5: "The effects in the world are all of a saga's or none, each had once.",
    6: "No acknowledged command is lost or taken up twice.",
    7: "Nothing is dispatched while paused, or by a node whose lease has ended.",
    8: "No reader sees a log go backwards.",
}


@dataclass(frozen=True, slots=True)
class Violation:
    """An invariant, by its number, that does not hold. `saga_id` is empty where no one saga is meant."""

    invariant: int
    saga_id: str
    message: str

    def __str__(self) -> str:
        about = f' Saga "{self.saga_id}":' if self.saga_id else ""
        return f"Invariant {self.invariant}:{about} {self.message}"


@dataclass(frozen=True, slots=True)
class Had:
    """An effect that was had (`phase` "do") or taken back ("undo")."""

    key: str
    phase: str
    saga_id: str
    node: str
    epoch: int
    at_us: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a run left behind. `had` is in the order of the commits; `inventory` are the effects in the world at the end, as saga and node."""

    events: Sequence[Event]
    logs: Mapping[str, ExportedLog]
    deliveries: Sequence[Delivery] = ()
    had: Sequence[Had] = ()
    inventory: Sequence[tuple[str, str]] = ()
    problems: Sequence[str] = ()
    """Why something is missing."""


def check(evidence: Evidence) -> list[Violation]:
    """All violations, by invariant and saga. None: every invariant holds."""
    found = [Violation(0, "", problem) for problem in evidence.problems]
    found += _run(evidence)
    calls: dict[str, list[ClientCall]] = defaultdict(list)
    for event in evidence.events:
        if isinstance(event, ClientCall):
            calls[event.saga_id].append(event)
    deliveries = _by_saga(evidence.deliveries)
    had = _by_saga(evidence.had)
    inventory: dict[str, list[str]] = defaultdict(list)
    for saga_id, node in evidence.inventory:
        inventory[saga_id].append(node)
    faults = [event for event in evidence.events if isinstance(event, Fault)]
    settled_us = max((e.at_us for e in evidence.events if isinstance(e, Milestone)), default=0)
    for saga_id in sorted({*evidence.logs, *calls, *deliveries, *had, *inventory}):
        log = evidence.logs.get(saga_id)
        if log is None:
            found += _without_log(saga_id, calls[saga_id], bool(deliveries.get(saga_id)), bool(had.get(saga_id)))
            continue
        saga = _Saga(log, calls[saga_id], deliveries.get(saga_id, []), had.get(saga_id, []), inventory[saga_id], faults, settled_us)
        found += saga.check()
    found += _readers(evidence)
    return sorted(found, key=lambda violation: (violation.invariant, violation.saga_id))


def _run(evidence: Evidence) -> Iterator[Violation]:
    milestones = [event.what for event in evidence.events if isinstance(event, Milestone)]
    if "gave up" in milestones:
        yield Violation(4, "", "Not all sagas had settled when the time for it was over.")
    elif "settled" not in milestones:
        yield Violation(0, "", "The run did not come to its end.")
    for event in evidence.events:
        if isinstance(event, Fault) and event.how == "died":
            yield Violation(0, "", f'"{event.target}" ended by itself: {event.why}.')


def _without_log(saga_id: str, calls: Sequence[ClientCall], delivered: bool, had: bool) -> Iterator[Violation]:
    if any(call.answer is Answer.OK for call in calls):
        yield Violation(4, saga_id, "its submit was acknowledged, and it is not there.")
    if delivered:
        yield Violation(2, saga_id, "an action server was called for it, and it is not there.")
    if had:
        yield Violation(5, saga_id, "it has effects in the world, and it is not there.")


@dataclass
class _Paused:
    """A stretch of a log in which nothing may be dispatched. `until_us` 0: to the end."""

    from_us: int
    epoch: Epoch
    until_us: int = 0


@dataclass
class _Saga:
    log: ExportedLog
    calls: Sequence[ClientCall]
    deliveries: Sequence[Delivery]
    had: Sequence[Had]
    inventory: Sequence[str]
    faults: Sequence[Fault]
    settled_us: int
    found: list[Violation] = field(default_factory=list)
    pauses: list[_Paused] = field(default_factory=list)

    def check(self) -> list[Violation]:
        if self.log.problem or self.log.corrupt or self.log.definition is None:
            reason = self.log.problem or self.log.corrupt or "its definition is missing"
            self._violated(4, f"its log cannot be read: {reason}")
            return self.found
        graph = compile_graph(self.log.definition)
        checker = Checker(graph)
        try:
            for entry in self.log.entries:
                checker.see(entry)
                self._see_pause(checker, entry)
        except Violated as error:
            number, _, message = str(error).partition(": ")
            self._violated(int(number), message)
        except (KeyError, ValueError) as error:
            self._violated(2, f"record {checker.sequence + 1} of its log is about nothing that it has: {error}")
        self._settled()
        self._effects(graph)
        self._order_of_effects(graph, checker)
        self._dispatches()
        self._commands()
        return self.found

    def _violated(self, invariant: int, message: str) -> None:
        self.found.append(Violation(invariant, self.log.head.saga_id, message))

    def _see_pause(self, checker: Checker, entry: LogEntry) -> None:
        """A step lets something be dispatched, and so does the retry of an undo: what is looked at ends there."""
        open_ = self.pauses[-1] if self.pauses and not self.pauses[-1].until_us else None
        let = isinstance(entry.record, Commanded) and isinstance(entry.record.command, Step | RetryUndo)
        if open_ is not None and (let or not checker.orders.paused):
            open_.until_us = entry.time_us
        elif open_ is None and not let and checker.orders.paused and not checker.orders.steps and not checker.orders.stepped:
            self.pauses.append(_Paused(entry.time_us, entry.epoch))

    # 4

    def _settled(self) -> None:
        try:
            recovered = recover(self.log)
        except SagaError as error:
            self._violated(4, f"its log cannot be folded: {error}")
            return
        if recovered.problem:
            self._violated(4, f"its log cannot be folded: {recovered.problem}")
            return
        try:
            check_settled(recovered.state)
        except Violated as error:
            self._violated(4, str(error).partition(": ")[2])

    # 5 and the world's part of 2 and 3

    def _effects(self, graph: Graph) -> None:
        had = Counter((effect.node, effect.phase) for effect in self.had)
        for (node, phase), times in had.items():
            if times > 1:
                self._violated(5, f'the effect of "{node}" was {"had" if phase == "do" else "taken back"} {times} times.')
        for node in {node for node, _ in had} | set(self.inventory):
            left = had[node, "do"] - had[node, "undo"]
            if left != self.inventory.count(node):
                self._violated(
                    5, f'"{node}" has {self.inventory.count(node)} effects in the world, but by what happened it has {left}.'
                )
        if self.log.entries and isinstance(self.log.entries[-1].record, Done):
            try:
                check_all_or_none(graph, self.log.entries, set(self.inventory))
            except Violated as error:
                self._violated(5, str(error).partition(": ")[2])
            return
        settled = {str(e.record.node) for e in self.log.entries if isinstance(e.record, UndoFinished | Failed)}
        started = {str(e.record.node) for e in self.log.entries if isinstance(e.record, Started)}
        for node in sorted(set(self.inventory) & settled | set(self.inventory) - started):
            self._violated(5, f'"{node}" has an effect in the world, but by the log it has none.')

    def _order_of_effects(self, graph: Graph, checker: Checker) -> None:
        actions = {node.index for node in graph.nodes if node.action is not None}
        skipped = {str(e.record.node) for e in self.log.entries if isinstance(e.record, UndoSkipped)}
        done: set[str] = set()
        undone: set[str] = set()
        for effect in self.had:
            try:
                index = graph.index_of(effect.node)
            except (KeyError, ValueError):
                self._violated(5, f'an effect was had for "{effect.node}", which is no node of it.')
                continue
            if effect.phase == "do":
                missing = [graph.nodes[p].path for p in checker.parents[index] & actions if graph.nodes[p].path not in done]
                if missing:
                    self._violated(2, f'the effect of "{effect.node}" was had before that of {_quoted(missing)}.')
                done.add(effect.node)
            else:
                below = [graph.nodes[c].path for c in checker.children[index] & actions]
                left = [path for path in below if path in done and path not in undone and path not in skipped]
                if left:
                    self._violated(3, f'the effect of "{effect.node}" was taken back before that of {_quoted(left)}.')
                undone.add(effect.node)

    # 2, 3 and 7, as the action servers saw them

    def _dispatches(self) -> None:
        begun: dict[tuple[str, str], tuple[Epoch, int]] = {}
        failed: set[str] = set()
        takeovers: list[tuple[Epoch, int]] = []
        for entry in self.log.entries:
            match entry.record:
                case Started(node):
                    begun.setdefault((str(node), "do"), (entry.epoch, entry.time_us))
                case UndoStarted(node):
                    begun.setdefault((str(node), "undo"), (entry.epoch, entry.time_us))
                case Failed(node):
                    failed.add(str(node))
                case OwnerChanged(epoch):
                    takeovers.append((epoch, entry.time_us))
        for delivery in self.deliveries:
            what = f'the {delivery.phase} of "{delivery.node}"'
            epoch, time_us = begun.get((delivery.node, delivery.phase), (Epoch(0), 0))
            if not time_us:
                self._violated(2, f"{what} was dispatched, and the log has no record of its start.")
            elif delivery.epoch < epoch or delivery.at_us < time_us:
                self._violated(2, f"{what} was dispatched before the record of its start.")
            if delivery.phase == "undo" and delivery.node in failed:
                self._violated(3, f'"{delivery.node}" has failed, and its undo was dispatched.')
            if not delivery.again:  # whoever called has done so long before
                self._lease(what, delivery, takeovers)
                self._pause(what, delivery)

    def _lease(self, what: str, delivery: Delivery, takeovers: Sequence[tuple[Epoch, int]]) -> None:
        over_us = next((time_us for epoch, time_us in takeovers if epoch > delivery.epoch), None)
        if over_us is None or delivery.at_us <= over_us + SLACK_US or self._server_at_fault(delivery, over_us):
            return
        if self._was_under_way(delivery) or self._was_revoked(delivery, over_us):
            return
        late_s = (delivery.at_us - over_us) / 1e6
        self._violated(
            7, f'{what} was dispatched by "{delivery.sec_node}" {late_s:.1f} s after another node had taken the saga over.'
        )

    def _was_under_way(self, delivery: Delivery) -> bool:
        """The caller was stopped right behind its last record, and has just gone on."""
        decided_us = max((e.time_us for e in self.log.entries if e.epoch == delivery.epoch), default=0)
        return any(
            fault.target == delivery.sec_node
            and fault.how == "stop"
            and (fault.point == "before_call" or fault.start_us <= decided_us + UNDER_WAY_US)
            and decided_us <= fault.end_us
            and delivery.at_us <= fault.end_us + UNDER_WAY_US
            for fault in self.faults
        )

    def _was_revoked(self, delivery: Delivery, over_us: int) -> bool:
        """Its lease was ended from outside, and it could not hear of it: then it goes by its own deadline still."""
        node = delivery.sec_node
        revoked = [f.start_us for f in self.faults if f.kind == "lease" and f.target == node and f.start_us <= over_us + SLACK_US]
        cuts = [f for f in self.faults if f.other and node in f.processes and f.start_us <= delivery.at_us]
        return any(cut.end_us + SLACK_US >= revoked_us for cut in cuts for revoked_us in revoked)

    def _server_at_fault(self, delivery: Delivery, from_us: int) -> bool:
        """The call may have been on its way since then."""
        return any(
            (not fault.other and fault.target == delivery.server) or fault.between(delivery.sec_node, delivery.server)
            for fault in self._faults_in(from_us, delivery.at_us)
        )

    def _pause(self, what: str, delivery: Delivery) -> None:
        for paused in self.pauses:
            if delivery.epoch < paused.epoch or delivery.at_us <= paused.from_us + SLACK_US:
                continue
            if paused.until_us and delivery.at_us >= paused.until_us:
                continue
            if not self._at_fault([delivery.server, delivery.sec_node], paused.from_us, delivery.at_us):
                self._violated(
                    7, f"{what} was dispatched {(delivery.at_us - paused.from_us) / 1e6:.1f} s after the saga was paused."
                )

    def _at_fault(self, processes: Iterable[str], from_us: int, to_us: int) -> bool:
        return any(fault.processes & {*processes} for fault in self._faults_in(from_us, to_us))

    def _faults_in(self, from_us: int, to_us: int) -> Iterator[Fault]:
        return (f for f in self.faults if f.start_us <= to_us and f.end_us + SLACK_US >= from_us)

    # 6

    def _commands(self) -> None:
        taken: dict[str, list[Commanded]] = defaultdict(list)
        for entry in self.log.entries:
            if isinstance(entry.record, Commanded):
                taken[entry.record.command_id].append(entry.record)
        given = {call.command_id: call for call in self.calls if call.call == "command"}
        for command_id, records in taken.items():
            call = given.get(command_id)
            if call is None:
                self._violated(6, f'nobody gave the command "{command_id}", which was taken up.')
            elif any(_written(record) != call.command for record in records):
                self._violated(6, f'the command "{command_id}" was taken up as another one than was given.')
            if len(records) > 1:
                self._violated(6, f'the command "{command_id}" was taken up {len(records)} times.')
        for command_id, call in given.items():
            if call.answer is Answer.OK and command_id not in taken and self._went_on_after(call.end_us):
                self._violated(6, f'the command "{command_id}" was acknowledged, and never taken up.')

    def _went_on_after(self, acknowledged_us: int) -> bool:
        """Only a command that came in while the saga ended is not taken up, and one of which the run did not see the outcome."""
        entries = self.log.entries
        ended = bool(entries) and isinstance(entries[-1].record, Done)
        until_us = entries[-1].time_us if ended else self.settled_us
        if ended and self._at_fault({e.writer for e in entries if e.time_us >= acknowledged_us}, acknowledged_us, until_us):
            return False  # who brought it to its end may not have heard of the command
        return until_us > acknowledged_us + SLACK_US


# 8


def _readers(evidence: Evidence) -> Iterator[Violation]:
    watched: dict[str, list[Observed]] = defaultdict(list)
    read: dict[str, list[Read]] = defaultdict(list)
    for event in evidence.events:
        if isinstance(event, Observed):
            watched[event.watcher].append(event)
        elif isinstance(event, Read):
            read[event.reader].append(event)
    for seen in watched.values():
        yield from _watch(seen, evidence.logs.get(seen[0].saga_id))
    for answers in read.values():
        yield from _reads(answers, evidence.logs.get(answers[0].saga_id))


def _watch(seen: Sequence[Observed], log: ExportedLog | None) -> Iterator[Violation]:
    saga_id = seen[0].saga_id
    for number, record in enumerate(seen, 1):
        if record.sequence != number:
            yield Violation(8, saga_id, f"a watcher was shown record {record.sequence} where record {number} belongs.")
            return
    entries = () if log is None else log.entries
    for record in seen:
        kept = entries[record.sequence - 1] if record.sequence <= len(entries) else None
        if kept is None or (kept.epoch, kept.writer) != (record.epoch, record.writer) or _kind(kept) != record.kind:
            yield Violation(8, saga_id, f"a watcher was shown record {record.sequence} ({record.kind}), which the log has not got.")
            return


def _reads(answers: Sequence[Read], log: ExportedLog | None) -> Iterator[Violation]:
    saga_id = answers[0].saga_id
    for before, after in pairwise(answers):
        if after.start_us >= before.end_us and after.next_sequence < before.next_sequence:
            yield Violation(
                8, saga_id, f"a reader saw {before.next_sequence - 1} records, and then only {after.next_sequence - 1}."
            )
            return
    most = max(answer.next_sequence for answer in answers) - 1
    if most > (0 if log is None else len(log.entries)):
        yield Violation(8, saga_id, f"a reader saw {most} records, and in the end there were fewer.")


def _kind(entry: LogEntry) -> str:
    """As the contract calls it: "UndoStarted" is "undo_started"."""
    name = type(entry.record).__name__
    return name[0].lower() + "".join(f"_{c.lower()}" if c.isupper() else c for c in name[1:])


def _written(record: Commanded) -> dict[str, object]:
    return MessageToDict(command_to_proto(record.command), preserving_proto_field_name=True)


def _quoted(paths: Iterable[str]) -> str:
    return ", ".join(f'"{path}"' for path in sorted(paths))


def _by_saga(items: Iterable[_OfASaga]) -> dict[str, list[_OfASaga]]:
    found: dict[str, list[_OfASaga]] = defaultdict(list)
    for item in items:
        found[item.saga_id].append(item)
    return found
