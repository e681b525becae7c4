"""The obligations of the contract, for actions whose effects are in one SQLite file: kept here once, for all actions.

Each call is one transaction: it remembers the epoch, has the effect, and marks the key with what it answers. When an action fails, or raises, its
effect is taken back to a savepoint, and the epoch and the mark stay.
"""

import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc
from sec_protos.v1 import action_server_pb2 as pb
from sec_protos.v1 import action_server_pb2_grpc, common_pb2

DONE, FAILED, UNDO_FAILED, UNDONE = "done", "failed", "undo failed", "undone"
"""What the mark of a key says. A key without a mark was never seen, or nothing of it is left but an unknown outcome."""
TABLES = """
    CREATE TABLE IF NOT EXISTS epochs (saga_uid TEXT PRIMARY KEY, epoch INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS marks (key TEXT PRIMARY KEY, mark TEXT NOT NULL, answer BLOB NOT NULL);
"""
T = TypeVar("T")


class Failed(Exception):
    """Raised by an action: it has no effect and never will. Raised by an undo: it cannot be done."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.error = common_pb2.Error(message=message, code=code)


class Refused(Exception):
    """The call ends with this status."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Action:
    """`do` and `undo` have their effect in the database that they get, and nowhere else. `prepare` comes before a do, outside of its transaction: what is slow
    goes there."""

    name: str
    summary: str
    do: Callable[[sqlite3.Connection, pb.DoRequest], common_pb2.Payload]
    undo: Callable[[sqlite3.Connection, pb.UndoRequest], None] = lambda db, message: None
    prepare: Callable[[pb.DoRequest], None] = lambda message: None


class ActionServer(action_server_pb2_grpc.ActionServerServicer):
    """Serves actions. The file is opened once, and used by one call at a time."""

    def __init__(self, name: str, actions: list[Action], file: Path | str, tables: str) -> None:
        self.name = name
        self.actions = {action.name: action for action in actions}
        self.one_at_a_time = threading.Lock()
        self.db = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
        self.db.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;" + TABLES + tables)

    # The names and the order of arguments are those of the generated code.

    def Describe(self, message, context):  # noqa: N802
        described = [pb.ActionDescription(name=action.name, summary=action.summary) for action in self.actions.values()]
        return pb.DescribeResponse(server_name=self.name, actions=described)

    def Do(self, message, context):  # noqa: N802
        return self.answered(context, lambda: self.do(message))

    def Undo(self, message, context):  # noqa: N802
        return self.answered(context, lambda: self.undo(message))

    def answered(self, context, call):
        try:
            return call()
        except Refused as refused:
            context.abort(refused.code, str(refused))
        # Any other exception: gRPC answers UNKNOWN, and the call comes again.

    def do(self, message: pb.DoRequest) -> pb.DoResponse:
        action = self.offered(message.call)
        action.prepare(message)
        return self.in_a_transaction(lambda: self.do_once(action, message))

    def undo(self, message: pb.UndoRequest) -> pb.UndoResponse:
        action = self.offered(message.call)
        return self.in_a_transaction(lambda: self.undo_once(action, message))

    def do_once(self, action: Action, message: pb.DoRequest) -> Callable[[], pb.DoResponse]:
        key = message.call.idempotency_key
        if stale := self.stale(message.call):
            return stale
        mark, answer = self.known(key)
        if mark == UNDONE:
            return lambda: pb.DoResponse(failure=common_pb2.Error(message="It was undone before.", code="undone"))
        if mark == UNDO_FAILED:
            return refusal(grpc.StatusCode.UNAVAILABLE, "Its undo has failed.")
        if mark is None:
            try:
                done = pb.DoResponse(output=self.effect(lambda: action.do(self.db, message)))
                mark = DONE
            except Failed as failed:
                done, mark = pb.DoResponse(failure=failed.error), FAILED
            except Exception as error:
                return refusal(grpc.StatusCode.UNAVAILABLE, str(error))
            answer = done.SerializeToString()
            self.remember(key, mark, answer)
        return lambda: pb.DoResponse.FromString(answer)

    def undo_once(self, action: Action, message: pb.UndoRequest) -> Callable[[], pb.UndoResponse]:
        key = message.call.idempotency_key
        if stale := self.stale(message.call):
            return stale
        mark, answer = self.known(key)
        if mark in (DONE, UNDO_FAILED) or (mark is None and message.HasField("output")):
            try:
                self.effect(lambda: action.undo(self.db, message))
            except Failed as failed:
                undo_failed = pb.UndoResponse(failure=failed.error)
                self.remember(key, UNDO_FAILED, answer)
                return lambda: undo_failed
            except Exception as error:
                return refusal(grpc.StatusCode.UNAVAILABLE, str(error))
        self.remember(key, UNDONE, b"")
        return pb.UndoResponse

    def offered(self, call: pb.Call) -> Action:
        if call.action not in self.actions:
            raise Refused(grpc.StatusCode.UNIMPLEMENTED, f'The action "{call.action}" is not offered here.')
        return self.actions[call.action]

    def stale(self, call: pb.Call) -> Callable[[], T] | None:
        """Remembers the epoch. Answers a refusal when a higher one was seen."""
        row = self.db.execute("SELECT epoch FROM epochs WHERE saga_uid = ?", (call.saga_uid,)).fetchone()
        if row is not None and row[0] > call.epoch:
            return refusal(grpc.StatusCode.FAILED_PRECONDITION, f"Epoch {call.epoch} is stale: {row[0]} has been seen.")
        self.db.execute("INSERT OR REPLACE INTO epochs VALUES (?, ?)", (call.saga_uid, call.epoch))
        return None

    def known(self, key: str) -> tuple[str | None, bytes]:
        """The mark of a key, and what its do answered."""
        return self.db.execute("SELECT mark, answer FROM marks WHERE key = ?", (key,)).fetchone() or (None, b"")

    def remember(self, key: str, mark: str, answer: bytes) -> None:
        self.db.execute("INSERT OR REPLACE INTO marks VALUES (?, ?, ?)", (key, mark, answer))

    def effect(self, function: Callable[[], T]) -> T:
        """Runs a function that changes the database, and takes its changes back when it raises."""
        self.db.execute("SAVEPOINT effect")
        try:
            return function()
        except BaseException:
            self.db.execute("ROLLBACK TO effect")
            raise
        finally:
            self.db.execute("RELEASE effect")

    def in_a_transaction(self, function: Callable[[], Callable[[], T]]) -> T:
        """What the function returns is called once the transaction is durable. So a refusal does not take the epoch back."""
        with self.one_at_a_time:
            self.db.execute("BEGIN IMMEDIATE")
            try:
                answer = function()
                self.db.execute("COMMIT")
            except BaseException:
                self.db.execute("ROLLBACK")
                raise
        return answer()


def refusal(code: grpc.StatusCode, message: str) -> Callable[[], T]:
    def refuse() -> T:
        raise Refused(code, message)

    return refuse
