"""Replays scripts: a saga, what happens to it step by step, and after each step what the core writes, dispatches, and shows.

A script is a text file. A line that begins with "$ " is a command; what stands below it, up to the next blank line, is its output. Everything else is for
the reader. Several events behind one "$ ", separated by ";", reach the core together.

    $ saga a > b | c*2            a saga (see compact.py), submitted and not started
    $ saga a > b within 60p       the same with a deadline that pauses it after 60 seconds (60: that makes it unwind)
    $ start                       start it as sec-1
    $ offer a b / offer all       the actions that action servers offer from here on
    $ ok a                        the action of a has succeeded
    $ fail a No room.             it has failed
    $ lost a No answer.           the call under way (do or undo) ended without an answer
    $ undone a                    the undo action has succeeded
    $ undo-fails a Held.          it has failed for good
    $ take over / cut 2           sec-2, sec-3, ... recovers the saga from its log / the last 2 records of it are lost
    $ clock 30                    30 seconds after the beginning, the clock is looked at
    $ log                         the whole log

What an operator orders gets the ids c1, c2, ...:

    $ pause Why. / resume / step / abort Why.
    $ break before a / break after a / clear before a / clear after a
    $ max-in-flight 1
    $ retry-undo a / skip-undo a By hand. / mark-undone a By hand.
    $ inject-error a do / inject-repeat a undo 3
    $ signal a words              what the signal node a waits for
    $ deadline a 20 fail          20 seconds after the beginning; of the saga: deadline saga 20 pause; none: deadline a 0 fail
    $ again                       the order before, with its id

Output: "+" a record, "->" an effect, "@" when the clock is to be looked at, and the tree of nodes. Draws are 0, so that pauses have their full
length, and every call takes 1 second.
"""

from collections.abc import Callable, Iterator

import compact
from mini_driver import assert_same_state
from sec_model import Deadline, OnDeadline, Payload
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

from sec.core.decide import (
    AnswerMissing,
    Begin,
    Dispatch,
    DoAnswered,
    Effect,
    Event,
    Hurry,
    NotWaitedFor,
    Ordered,
    TakenOver,
    UndoAnswered,
    Withhold,
    decide,
)
from sec.core.errors import SagaError
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
    OutcomeUnknown,
    OwnerChanged,
    Phase,
    Pinned,
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
from sec.core.state import NO_TRIES, SagaState, fold
from sec.core.status import node_state


def replay(text: str) -> str:
    """The script with its outputs as they are now."""
    lines: list[str] = []
    session = Session()
    in_output = False
    for line in text.splitlines():
        if line.startswith("$ "):
            if line.startswith("$ saga "):
                session = Session(line[7:])
            lines += [line, *session.run(line[2:])]
            in_output = True
        elif not in_output or not line.strip():
            in_output = False
            lines.append(line)
    return "\n".join(lines) + "\n"


class Session:
    """One saga and its log."""

    def __init__(self, saga: str = "a") -> None:
        saga, _, within = saga.partition(" within ")
        self.deadline: Deadline | None = None
        if within:
            then = OnDeadline.PAUSE if within.endswith("p") else OnDeadline.FAIL
            self.deadline = Deadline(float(within.removesuffix("p")), then)
        self.now_us = 0
        self.state = SagaState(SagaId("s"), compact.graph(saga))
        self.log: list[LogEntry] = []
        self.epoch = Epoch(1)
        self.offered: frozenset[str] | None = None
        self.orders: list[Ordered] = []

    def run(self, command: str) -> list[str]:
        verb, _, rest = command.partition(" ")
        match verb:
            case "saga":
                self._write(Created("uid", "hash", self.deadline))
                return self._tree()
            case "start":
                self._write(StartRequested(0 if self.deadline is None else self.now_us + round(self.deadline.after_s * 1e6)))
                return self._step(Begin())
            case "offer":
                self.offered = None if rest == "all" else frozenset(rest.split())
                return self._step(Begin())
            case "take":
                self.epoch = Epoch(self.epoch + 1)
                self.state = fold(SagaId("s"), self.state.graph, self.log)
                return self._step(TakenOver(self.epoch, SecNodeName(f"sec-{self.epoch}")))
            case "cut":
                del self.log[-int(rest) :]
                self.state = fold(SagaId("s"), self.state.graph, self.log)
                return self._tree()
            case "log":
                return [f"{e.sequence:3} epoch {e.epoch} {_record(e.record)}" for e in self.log]
            case _:
                return self._step(*(self._event(part.strip()) for part in command.split(";")))

    def _event(self, text: str) -> Event:
        verb, path, words = (*text.split(" ", 2), "", "")[:3]
        node, fault = NodePath(path), Fault(words)
        match verb:
            case "ok":
                return DoAnswered(node, Payload.json(path))
            case "fail":
                spent_s = self.state.tries.get(self.state.graph.by_path[node], NO_TRIES).spent_s + 1.0
                return DoAnswered(node, fault, spent_s)
            case "undone":
                return UndoAnswered(node, None)
            case "undo-fails":
                return UndoAnswered(node, fault)
            case "not-waited-for":
                return NotWaitedFor(node)
            case "lost":
                index = self.state.graph.by_path[node]
                spent_s = self.state.tries.get(index, NO_TRIES).spent_s + 1.0
                return AnswerMissing(node, self.state.in_flight.get(index, Phase.DO), fault, spent_s, 0.0)
            case "again":
                return self.orders[-1]
            case "clock":
                self.now_us = round(float(path) * 1e6)
                return Begin()
            case _:
                self.orders.append(Ordered(f"c{len(self.orders) + 1}", "ada", _command(text)))
                return self.orders[-1]

    def _step(self, *events: Event) -> list[str]:
        try:
            ready = decide(self.state, events, self.offered, self.now_us)
        except SagaError as error:
            return [f"{type(error).__name__}: {error}"]
        for record in ready.records:
            self._write(record)
        assert_same_state(self.state, fold(SagaId("s"), self.state.graph, self.log))
        written = [f"+ {_record(r)}" for r in ready.records] + [f"-> {self._effect(e)}" for e in ready.effects]
        return written + ([f"@ {ready.wake_at_us / 1e6:g} s"] if ready.wake_at_us else []) + self._tree()

    def _write(self, record: Record) -> None:
        entry = LogEntry(len(self.log) + 1, self.epoch, SecNodeName(f"sec-{self.epoch}"), 0, record)
        self.log.append(entry)
        self.state.apply_entry(entry)

    def _effect(self, effect: Effect) -> str:
        path = self.state.graph.nodes[effect.node].path
        match effect:
            case Hurry():
                return f"hurry {path}"
            case Withhold():
                return f"withhold {path}"
            case Dispatch():
                pause = f" after {effect.delay_s:g} s" if effect.delay_s else ""
                repeats = f", {effect.repeats} times" if effect.repeats > 1 else ""
                injected = ", which fails without being called" if effect.injected_error else ""
                key = self.state.idempotency_key(effect.node)
                named = f", as {key}" if "~" in key else ""
                until = f", until {effect.until_us / 1e6:g} s" if effect.until_us else ""
                action = self.state.graph.nodes[effect.node].action
                assert action is not None
                called = f", {self.state.pins[action.action]}" if "@" in self.state.pins[action.action] else ""
                return f"{effect.phase.value} {path} #{effect.attempt}{called}{pause}{repeats}{injected}{named}{until}"

    def _tree(self) -> list[str]:
        controls = self.state.controls
        paused = f", paused ({controls.pause_reason})" if controls.paused else ""
        steps = f", {controls.steps} to step" if controls.steps else ""
        return [f"{self.state.course.value}{paused}{steps}:", *self._lines()]

    def _lines(self) -> Iterator[str]:
        for node in self.state.graph.nodes:
            if node.kind is not NodeKind.SUBSAGA_START:
                depth = node.path.count("/") + 1
                yield f"{'  ' * depth}{node.path.rpartition('/')[2]}: {node_state(self.state, node.index).value}"


_ORDERS: dict[str, Callable[[str, str, str], Command]] = {
    "pause": lambda one, _, rest: Pause(f"{one} {rest}".strip()),
    "resume": lambda *_: Resume(),
    "abort": lambda one, _, rest: Abort(f"{one} {rest}".strip()),
    "step": lambda *_: Step(),
    "break": lambda one, two, _: SetBreakpoint(NodePath(two), one == "after"),
    "clear": lambda one, two, _: SetBreakpoint(NodePath(two), one == "after", clear=True),
    "max-in-flight": lambda one, *_: SetMaxInFlight(int(one)),
    "retry-undo": lambda one, *_: RetryUndo(NodePath(one)),
    "skip-undo": lambda one, _, rest: SkipUndo(NodePath(one), rest),
    "mark-undone": lambda one, _, rest: MarkUndone(NodePath(one), rest),
    "inject-error": lambda one, two, _: InjectError(NodePath(one), Phase(two)),
    "signal": lambda one, _, rest: Signal(NodePath(one), Payload.json(rest)),
    "deadline": lambda one, two, rest: SetDeadline(
        NodePath("" if one == "saga" else one), OnDeadline(rest.split()[1]), due_us=round(float(two) * 1e6)
    ),
    "inject-repeat": lambda one, two, rest: InjectRepeat(NodePath(one), Phase(two), int(rest.split()[1])),
}
"""By their words: the two behind the order's name, and all behind the first of them."""


def _command(text: str) -> Command:
    verb, one, rest = (*text.split(" ", 2), "", "")[:3]
    assert verb in _ORDERS, f"no such command: {text}"
    return _ORDERS[verb](one, rest.partition(" ")[0], rest)


def _words(command: Command) -> str:
    """The command as a script gives it."""
    match command:
        case Pause(reason):
            return f"pause {reason}".strip()
        case Abort(reason):
            return f"abort {reason}".strip()
        case Resume() | Step():
            return type(command).__name__.lower()
        case SetBreakpoint(node, after, clear):
            return f"{'clear' if clear else 'break'} {'after' if after else 'before'} {node}"
        case SetMaxInFlight(limit):
            return f"max-in-flight {limit}"
        case RetryUndo(node):
            return f"retry-undo {node}"
        case SkipUndo(node, reason):
            return f"skip-undo {node} {reason}".strip()
        case MarkUndone(node, reason):
            return f"mark-undone {node} {reason}".strip()
        case InjectError(node, phase):
            return f"inject-error {node} {phase.value}"
        case InjectRepeat(node, phase, count):
            return f"inject-repeat {node} {phase.value} {count}"
        case Signal(node, data):
            return f"signal {node} {data.value()}"
        case SetDeadline(node, then, due_us):
            return f"deadline {node or 'saga'} {due_us / 1e6:g} {then.value}"


def _record(record: Record) -> str:
    match record:
        case Created() | StartRequested(0):
            return type(record).__name__
        case StartRequested(due_us):
            return f"StartRequested, due at {due_us / 1e6:g} s"
        case DeadlinePassed(node):
            return f"DeadlinePassed of {node or 'the saga'}"
        case Pinned(asked, offer):
            return f"Pinned {asked}: {offer}"
        case AttemptFailed(node, attempt, error, spent_s):
            return f"AttemptFailed {node}: do #{attempt}, {spent_s:g} s spent: {error.message}"
        case Started(node, due_us) if due_us:
            return f"Started {node}, due at {due_us / 1e6:g} s"
        case OwnerChanged(epoch, sec_node):
            return f"OwnerChanged to {sec_node}, epoch {epoch}"
        case Done(outcome):
            return f"Done: {outcome.value}"
        case Commanded(command_id, _, command, refused):
            return f"Commanded {command_id}: {_words(command)}{' -- refused: ' + refused if refused else ''}"
        case BreakpointHit(node, after):
            return f"BreakpointHit {'after' if after else 'before'} {node}"
        case AttemptUnknown(node, phase, attempt, error, spent_s):
            return f"AttemptUnknown {node}: {phase.value} #{attempt}, {spent_s:g} s spent: {error.message}"
        case Failed(node, error) | OutcomeUnknown(node, error) | UndoFailed(node, error):
            return f"{type(record).__name__} {node}: {error.message}"
        case UndoSkipped(node, reason):
            return f"UndoSkipped {node}: {reason}"
        case Started(node) | Succeeded(node) | UndoStarted(node) | UndoFinished(node):
            return f"{type(record).__name__} {node}"
