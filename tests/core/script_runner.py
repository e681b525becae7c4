"""Replays scripts: a saga, what happens to it step by step, and after each step what the core writes, dispatches, and shows.

A script is a text file. A line that begins with "$ " is a command; what stands below it, up to the next blank line, is its output. Everything else is for
the reader. Several events behind one "$ ", separated by ";", reach the core together.

    $ saga a > b | c*2            a saga (see compact.py), submitted and not started
    $ start                       start it as sec-1
    $ offer a b / offer all       the actions that action servers offer from here on
    $ ok a                        the action of a has succeeded
    $ fail a No room.             it has failed
    $ lost a No answer.           the call under way (do or undo) ended without an answer
    $ undone a                    the undo action has succeeded
    $ undo-fails a Held.          it has failed for good
    $ retry-undo a                an operator's
    $ skip-undo a By hand.        an operator's
    $ take over / cut 2           sec-2, sec-3, ... recovers the saga from its log / the last 2 records of it are lost
    $ log                         the whole log

Output: "+" a record, "->" an effect, and the tree of nodes. Draws are 0, so that pauses have their full length, and every call takes 1 second.
"""

from collections.abc import Iterator

import compact
from mini_driver import assert_same_state
from sec_model import Payload
from sec_model.graph import NodeKind

from sec.core.decide import (
    AnswerMissing,
    Begin,
    Dispatch,
    DoAnswered,
    Effect,
    Event,
    NotWaitedFor,
    RetryUndo,
    SkipUndo,
    TakenOver,
    UndoAnswered,
    decide,
)
from sec.core.errors import SagaError
from sec.core.records import (
    AttemptUnknown,
    Created,
    Done,
    Epoch,
    Failed,
    Fault,
    LogEntry,
    NodePath,
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
        self.state = SagaState(SagaId("s"), compact.graph(saga))
        self.log: list[LogEntry] = []
        self.epoch = Epoch(1)
        self.offered: frozenset[str] | None = None

    def run(self, command: str) -> list[str]:
        verb, _, rest = command.partition(" ")
        match verb:
            case "saga":
                self._write(Created("uid", "hash"))
                return self._tree()
            case "start":
                self._write(StartRequested())
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
        verb, path, words = (*text.split(" ", 2), "")[:3]
        node, fault = NodePath(path), Fault(words)
        match verb:
            case "ok":
                return DoAnswered(node, Payload.json(path))
            case "fail":
                return DoAnswered(node, fault)
            case "undone":
                return UndoAnswered(node, None)
            case "undo-fails":
                return UndoAnswered(node, fault)
            case "not-waited-for":
                return NotWaitedFor(node)
            case "retry-undo":
                return RetryUndo(node)
            case "skip-undo":
                return SkipUndo(node, words)
            case "lost":
                index = self.state.graph.by_path[node]
                spent_s = self.state.tries.get(index, NO_TRIES).spent_s + 1.0
                return AnswerMissing(node, self.state.in_flight.get(index, Phase.DO), fault, spent_s, 0.0)
            case _:
                raise AssertionError(f"no such command: {text}")

    def _step(self, *events: Event) -> list[str]:
        try:
            ready = decide(self.state, events, self.offered)
        except SagaError as error:
            return [f"{type(error).__name__}: {error}"]
        for record in ready.records:
            self._write(record)
        assert_same_state(self.state, fold(SagaId("s"), self.state.graph, self.log))
        return [f"+ {_record(r)}" for r in ready.records] + [f"-> {self._effect(e)}" for e in ready.effects] + self._tree()

    def _write(self, record: Record) -> None:
        entry = LogEntry(len(self.log) + 1, self.epoch, SecNodeName(f"sec-{self.epoch}"), 0, record)
        self.log.append(entry)
        self.state.apply_entry(entry)

    def _effect(self, effect: Effect) -> str:
        path = self.state.graph.nodes[effect.node].path
        if not isinstance(effect, Dispatch):
            return f"hurry {path}"
        pause = f" after {effect.delay_s:g} s" if effect.delay_s else ""
        return f"{effect.phase.value} {path} #{effect.attempt}{pause}"

    def _tree(self) -> list[str]:
        return [f"{self.state.course.value}:", *self._lines()]

    def _lines(self) -> Iterator[str]:
        for node in self.state.graph.nodes:
            if node.kind is not NodeKind.SUBSAGA_START:
                depth = node.path.count("/") + 1
                yield f"{'  ' * depth}{node.path.rpartition('/')[2]}: {node_state(self.state, node.index).value}"


def _record(record: Record) -> str:
    match record:
        case Created() | StartRequested():
            return type(record).__name__
        case OwnerChanged(epoch, sec_node):
            return f"OwnerChanged to {sec_node}, epoch {epoch}"
        case Done(outcome):
            return f"Done: {outcome.value}"
        case AttemptUnknown(node, phase, attempt, error, spent_s):
            return f"AttemptUnknown {node}: {phase.value} #{attempt}, {spent_s:g} s spent: {error.message}"
        case Failed(node, error) | OutcomeUnknown(node, error) | UndoFailed(node, error):
            return f"{type(record).__name__} {node}: {error.message}"
        case UndoSkipped(node, reason):
            return f"UndoSkipped {node}: {reason}"
        case Started(node) | Succeeded(node) | UndoStarted(node) | UndoFinished(node):
            return f"{type(record).__name__} {node}"
