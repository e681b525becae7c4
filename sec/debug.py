"""Folds an exported saga log without a cluster: what the log says, and what would follow from it.

The file is what `secctl saga log --export` writes (`secctl.export` describes it). The rules are those of `sec.core`, and the tree is the one that
`secctl saga get` prints: there is no second account of either.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, assert_never

from google.protobuf.json_format import ParseDict, ParseError
from sec_client import decode
from sec_model import Definition, Graph, OnDeadline, Payload, compile_graph
from sec_model.codec import definition_bytes, definition_from_proto, definition_hash, payload_from_proto
from sec_model.graph import NodeKind
from sec_protos.v1 import common_pb2, coordinator_pb2, definition_pb2
from secctl import render

from sec.api.views import saga_view, sequenced
from sec.codec import record_from_proto
from sec.core.decide import Dispatch, Effect, Hurry, Ready, TakenOver, Withhold, decide
from sec.core.errors import CorruptLog, SagaError
from sec.core.records import Epoch, LogEntry, Phase, SagaId, SecNodeName
from sec.core.state import SagaState
from sec.core.transitions import Course
from sec.store.kv import Revision
from sec.store.sagas import SagaHead, StoredSaga

FORMAT = 1
NEXT_OWNER = SecNodeName("next-owner")
"""Stands for the SEC node that would take the saga over."""


class CannotRecover(SagaError):
    """The file cannot be used at all. The message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class ExportedLog:
    """What an exported file says. `problem` is set when a line of it cannot be read, or says that the log is damaged there; the entries are
    then those before it."""

    head: SagaHead
    definition: Definition | None
    entries: tuple[LogEntry, ...]
    problem: str = ""
    corrupt: str = ""
    """Why the cluster could not read the log, when it could not."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """An exported log, folded. `state` is as far as the log makes sense; `problem` says why it does so no longer, and is empty otherwise."""

    log: ExportedLog
    state: SagaState
    problem: str

    @property
    def folded(self) -> tuple[LogEntry, ...]:
        return self.log.entries[: self.state.next_sequence - 1]


def read_export(text: str) -> ExportedLog:
    """Reads an exported file. Raises `CannotRecover` when its header cannot be read."""
    first, *rest = [line for line in text.splitlines() if line.strip()] or [""]
    header = _header(first)
    saga_id = SagaId(str(header.get("saga_id", "")))
    try:
        definition = _definition(header.get("definition"))
        params = _params(header.get("params"))
        labels = {str(key): str(value) for key, value in _mapping(header.get("labels") or {}).items()}
    except (ParseError, ValueError) as error:
        raise CannotRecover(f'What the header says of saga "{saga_id}" cannot be read: {error}') from error
    head = SagaHead(
        saga_id,
        str(header.get("uid", "")),
        str(header.get("name", "")),
        str(header.get("definition_hash", "")),
        params,
        labels,
        0,
    )
    entries, problem = [], ""
    for number, line in enumerate(rest, 2):
        try:
            value = _mapping(json.loads(line))
            if "problem" in value:
                problem = str(value["problem"])
                break
            entries.append(_entry(value))
        except (ParseError, ValueError, CorruptLog) as error:
            problem = f"line {number} of the file is not a record that this version can read: {error}"
            break
    return ExportedLog(head, definition, tuple(entries), problem, str(header.get("corrupt", "")))


def recover(log: ExportedLog, definition: Definition | None = None) -> Recovered:
    """Folds a log, as far as it makes sense. `definition` is used where the file has none.

    Raises `CannotRecover` without a definition, or with another one than the saga was made from.
    """
    graph = _graph(log, definition)
    state = SagaState(log.head.saga_id, graph)
    try:
        for entry in log.entries:
            state.apply_entry(entry)
    except CorruptLog as error:
        return Recovered(log, state, str(error))
    return Recovered(log, state, log.problem)


def what_next(state: SagaState, now_us: int = 0) -> Ready | None:
    """What an SEC node would write and do that takes the saga over as it stands, at that instant. None: it is not taken over, for it has not
    started or has ended."""
    if state.course in (Course.NONEXISTENT, Course.CREATED) or state.course.ended:
        return None
    return decide(state, [TakenOver(Epoch(state.epoch + 1), NEXT_OWNER)], now_us=now_us)


def report(recovered: Recovered) -> str:
    """All of it as text."""
    return "\n".join(_report(recovered)) + "\n"


def _report(recovered: Recovered) -> Iterator[str]:
    log, state, folded = recovered.log, recovered.state, recovered.folded
    yield from _tree(recovered)
    yield f"records: {len(folded)}"
    yield f"course: {state.course.value}"
    if state.controls.paused:
        yield f"paused: {state.controls.pause_reason or 'no reason is recorded'}"
    yield from _section("epochs", _epochs(folded))
    yield from _section("mishaps", _mishaps(state))
    if log.corrupt:
        yield f"the cluster says: {log.corrupt}"
    if recovered.problem:
        yield f"the log stops making sense behind record {len(folded)}: {recovered.problem}"
        if len(folded) < len(log.entries):
            yield "the record there:"
            yield f"  {_line(log.entries[len(folded)])}"
        yield "An SEC node that reads this log leaves the saga alone, as corrupt."
        return
    yield from _section("what would happen next", _next(recovered))


def _tree(recovered: Recovered) -> Iterator[str]:
    state = recovered.state
    driven = state.course not in (Course.NONEXISTENT, Course.CREATED) and not state.course.ended
    stored = StoredSaga(recovered.log.head, recovered.folded, state.owner if driven else SecNodeName(""), Revision(0))
    message = saga_view(stored, state, None, {}, omit_outputs=True)
    if state.course is Course.NONEXISTENT:
        yield f'saga "{state.saga_id}" ({recovered.log.head.name}): there is no record of it'
        return
    yield from render.tree(decode.saga(message)).plain.splitlines()


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    found = list(lines)
    if found:
        yield f"{title}:"
        yield from (f"  {line}" for line in found)


def _epochs(entries: Iterable[LogEntry]) -> Iterator[str]:
    first: dict[tuple[Epoch, SecNodeName], int] = {}
    last: dict[tuple[Epoch, SecNodeName], int] = {}
    for entry in entries:
        key = (entry.epoch, entry.writer)
        first.setdefault(key, entry.sequence)
        last[key] = entry.sequence
    for (epoch, writer), start in first.items():
        end = last[epoch, writer]
        yield f"epoch {epoch}, written by {writer or 'nobody'}: {f'record {start}' if start == end else f'records {start} to {end}'}"


def _mishaps(state: SagaState) -> Iterator[str]:
    for mishap in state.mishaps:
        where = f'node "{mishap.node}"' if mishap.node else "the saga"
        undo = "undo of " if mishap.phase is Phase.UNDO else ""
        code = f" [{render.clean(mishap.error.code)}]" if mishap.error.code else ""
        yield f"record {mishap.sequence}, {undo}{where}: {render.clean(mishap.error.message)}{code}"


def _next(recovered: Recovered) -> Iterator[str]:
    """As of the last record, so that a file says the same at any time."""
    state, folded = recovered.state, recovered.folded
    ready = what_next(state, folded[-1].time_us if folded else 0)
    if ready is None:
        yield "nothing: the saga has ended" if state.course.ended else "nothing, until the saga is started"
        return
    yield f'an SEC node (here "{NEXT_OWNER}") takes the saga over. If all of its actions are offered, it writes'
    for offset, record in enumerate(ready.records):
        entry = LogEntry(state.next_sequence + offset, Epoch(state.epoch + 1), NEXT_OWNER, 0, record)
        yield f"  {_line(entry)}"
    yield f"and then {'it does' if ready.effects else 'waits: nothing is dispatched'}"
    for effect in ready.effects:
        yield f"  {_effect(state, effect)}"
    with state.rehearsal():
        for record in ready.records:
            state.apply(record)
        yield from _waits(state)


def _waits(state: SagaState) -> Iterator[str]:
    """What a saga waits for besides its calls: signals, and what the clock brings."""
    nodes = state.graph.nodes
    signals = [nodes[index].path for index in sorted(state.waiting) if nodes[index].kind is NodeKind.SIGNAL]
    if signals or state.dues:
        yield "and it waits for"
    for path in signals:
        yield f'  the signal of node "{path}"'
    for path, due in sorted(state.dues.items(), key=lambda item: item[1].us):
        when, of = render.instant(decode.time_of(due.us)), f'node "{path}"' if path else "the saga"
        match due.then:
            case None:
                yield f'  the time of node "{path}", {when}'
            case OnDeadline.PAUSE:
                yield f"  the deadline of {of}, {when}: then the saga is paused"
            case OnDeadline.FAIL:
                goes_on = "" if state.point_passed is None else ", unless it is past its point of no return, as it is now"
                yield f"  the deadline of {of}, {when}: then the saga unwinds{goes_on}"
            case _:
                assert_never(due.then)


def _effect(state: SagaState, effect: Effect) -> str:
    node = state.graph.nodes[effect.node]
    match effect:
        case Dispatch(_, phase, attempt, delay_s, timeout_s):
            assert node.action is not None, "only actions are dispatched"
            when = f" after {delay_s:g} s" if delay_s else ""
            instead = ", with an injected error in its place" if effect.injected_error else ""
            repeats = f", {effect.repeats} times" if effect.repeats > 1 else ""
            return (
                f'dispatch the {phase.value} of node "{node.path}" (action "{node.action.action}"){when}: '
                f"attempt {attempt}, for at most {timeout_s:g} s{repeats}{instead}"
            )
        case Hurry():
            return f'stop waiting for the next attempt of node "{node.path}"'
        case Withhold():
            return f'hold back the call of node "{node.path}", for the saga is paused'
        case _:
            assert_never(effect)


def _line(entry: LogEntry) -> str:
    return render.record(decode.record(sequenced(entry))).plain.strip()


def _graph(log: ExportedLog, given: Definition | None) -> Graph:
    definition = log.definition or given
    if definition is None:
        raise CannotRecover(
            f'The file does not have the definition of saga "{log.head.saga_id}": give the file that it was submitted from, with --definition.'
        )
    digest = definition_hash(definition_bytes(definition))
    if log.head.definition_hash and digest != log.head.definition_hash:
        raise CannotRecover(
            f'Saga "{log.head.saga_id}" was made from the definition {log.head.definition_hash}, but the one that is given is {digest}: '
            "give the one that it was submitted with, as it was then."
        )
    return compile_graph(definition)


def _header(line: str) -> Mapping[str, Any]:
    try:
        header = json.loads(line)
    except ValueError:
        header = None
    if not isinstance(header, dict) or "saga_log" not in header:
        raise CannotRecover(
            'The file does not begin with the header of a saga log: write it with "secctl saga log ID --export FILE".'
        )
    if header["saga_log"] != FORMAT:
        raise CannotRecover(
            f"The file is of format {header['saga_log']}, but this version reads format {FORMAT}: use the one that wrote it."
        )
    return header


def _definition(value: Any) -> Definition | None:
    return None if value is None else definition_from_proto(ParseDict(_mapping(value), definition_pb2.SagaDefinition()))


def _params(value: Any) -> Payload:
    return payload_from_proto(ParseDict(_mapping(value or {}), common_pb2.Payload()))


def _entry(value: dict[str, Any]) -> LogEntry:
    message = ParseDict(value, coordinator_pb2.SequencedRecord())
    record = record_from_proto(message.record)
    return LogEntry(message.sequence, Epoch(message.epoch), SecNodeName(message.writer), message.time_us, record)


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{json.dumps(value)[:100]} stands where a JSON object belongs")
    return value
