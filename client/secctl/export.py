"""A saga log as a file: JSON lines, a header and then one line a record.

The header is `{"saga_log": 1, "saga_id": …, "uid": …, "name": …, "definition_hash": …, "params": …, "labels": …}`: what the saga was submitted
with. `definition` is what it was made from, `corrupt` with the reason where it cannot read the log. Each further line is a
SequencedRecord of the contract in protobuf's JSON mapping, with the field names of the contract. Of a damaged log the last line is
`{"problem": …}`: why the records end there. `sec debug recover` reads it.
"""

import json
import sys
from dataclasses import dataclass
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from sec_client.transport import Cluster
from sec_protos.v1 import coordinator_pb2 as pb

from secctl.errors import BadInput
from secctl.settings import Settings

FORMAT = 1
"""Of the file. A reader refuses one that it does not know."""


@dataclass(frozen=True, slots=True)
class SagaFile:
    """The lines of a saga's file. `problem` is set when the log is damaged behind its `records`."""

    lines: list[str]
    records: int
    problem: str


async def read_log(settings: Settings, saga_id: str) -> SagaFile:
    """A saga with its log as that stands. Raises `SagaError`, and `BadInput` for a bad address."""
    try:
        cluster = Cluster(settings.sec, tls=settings.tls, metadata=settings.metadata, timeout_s=settings.timeout_s)
    except ValueError as e:
        raise BadInput(str(e)) from None
    try:
        question = pb.GetSagaRequest(saga_id=saga_id, omit_outputs=True, with_definition=True)
        found = await cluster.call(lambda stub: stub.GetSaga, question, saga_id=saga_id)
        records: list[str] = []
        problem, sequence = "", 1
        while sequence:
            message = pb.GetSagaLogRequest(saga_id=saga_id, from_sequence=sequence)
            answer = await cluster.call(lambda stub: stub.GetSagaLog, message, saga_id=saga_id)
            records += [_line(_mapped(record)) for record in answer.records]
            problem, sequence = answer.problem, answer.next_sequence
        end = [_line({"problem": problem})] if problem else []
        return SagaFile([_line(_header(found.saga)), *records, *end], len(records), problem)
    finally:
        await cluster.close()


def write_log(lines: list[str], path: str) -> None:
    """Writes the lines to a file, or to stdout ("-"). Raises `BadInput`."""
    text = "".join(f"{line}\n" for line in lines)
    if path == "-":
        sys.stdout.write(text)
        return
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as e:
        raise BadInput(f'"{path}" cannot be written: {e.strerror or e}.') from None


def _header(saga: pb.Saga) -> dict[str, Any]:
    header: dict[str, Any] = {
        "saga_log": FORMAT,
        "saga_id": saga.summary.saga_id,
        "uid": saga.uid,
        "name": saga.summary.name,
        "definition_hash": saga.definition_hash,
        "params": _mapped(saga.params),
        "labels": dict(sorted(saga.summary.labels.items())),
    }
    if saga.HasField("definition"):
        header["definition"] = _mapped(saga.definition)
    if saga.summary.state == pb.SAGA_STATE_CORRUPT:
        header["corrupt"] = saga.summary.error.error.message
    return header


def _mapped(message: Message) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True)


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
