"""Action servers that break the contract on purpose: the plain example in Python, each with one thing wrong."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from actions import CONFORMANCE, TABLES, add
from contract import DONE, FAILED, UNDO_FAILED, UNDONE, ActionServer, refusal
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from sec_protos.v1 import action_server_pb2 as pb
from sec_protos.v1 import action_server_pb2_grpc, common_pb2

LARGEST_CALL = 64 * 1024 * 1024


@dataclass(frozen=True)
class Breach:
    """What is wrong with a server, and the clause that it breaks."""

    name: str
    clause: str
    server: type[ActionServer] = ActionServer
    health: int = health_pb2.HealthCheckResponse.SERVING
    largest_call: int = LARGEST_CALL


BREACHES: list[Breach] = []


def breaks(clause: str) -> Callable[[type[ActionServer]], type[ActionServer]]:
    """Adds a server to the breaches, under the name of its class."""

    def add_one(server: type[ActionServer]) -> type[ActionServer]:
        BREACHES.append(Breach(server.__name__, clause, server))
        return server

    return add_one


@breaks("idempotent-do")
class ForgetsAnswers(ActionServer):
    def known(self, key: str) -> Any:
        mark, answer = super().known(key)
        return (None, b"") if mark == DONE else (mark, answer)


@breaks("idempotent-do")
class AnswersTheBalanceOfTheMoment(ActionServer):
    def do_once(self, action: Any, message: Any) -> Any:
        known, _ = self.known(message.call.idempotency_key)
        answer = super().do_once(action, message)
        if known == DONE and action.name == "conformance.add":
            undo = pb.UndoRequest(call=message.call, params=message.params)
            action.undo(self.db, undo)
            output = add(self.db, message)
            output.data += b" "
            return lambda: pb.DoResponse(output=output)
        return answer


@breaks("idempotent-undo")
class UndoesAgain(ActionServer):
    def undo_once(self, action: Any, message: Any) -> Any:
        mark, answer = self.known(message.call.idempotency_key)
        if mark == UNDONE:
            self.remember(message.call.idempotency_key, DONE, answer)
        return super().undo_once(action, message)


@breaks("keys")
class IgnoresTheCaseOfKeys(ActionServer):
    def known(self, key: str) -> Any:
        return super().known(key.lower())

    def remember(self, key: str, mark: str, answer: bytes) -> None:
        super().remember(key.lower(), mark, answer)


@breaks("keys")
class CutsKeysOff(ActionServer):
    def known(self, key: str) -> Any:
        return super().known(key[:255])

    def remember(self, key: str, mark: str, answer: bytes) -> None:
        super().remember(key[:255], mark, answer)


@breaks("undo-first")
class KnowsNothingToUndo(ActionServer):
    def undo_once(self, action: Any, message: Any) -> Any:
        if self.known(message.call.idempotency_key)[0] is None and not message.HasField("output"):
            return refusal(grpc.StatusCode.NOT_FOUND, "There is nothing to undo.")
        return super().undo_once(action, message)


@breaks("undo-first")
class ForgetsUndosThatCameFirst(ActionServer):
    def undo_once(self, action: Any, message: Any) -> Any:
        if self.known(message.call.idempotency_key)[0] is None and not message.HasField("output"):
            return self.stale(message.call) or pb.UndoResponse
        return super().undo_once(action, message)


@breaks("late-do")
class ForgetsWhatItHasUndone(ActionServer):
    def remember(self, key: str, mark: str, answer: bytes) -> None:
        if mark == UNDONE and self.known(key)[0] == DONE:
            self.db.execute("DELETE FROM marks WHERE key = ?", (key,))
        else:
            super().remember(key, mark, answer)


@breaks("late-do")
class LooksBeforeItSleeps(ActionServer):
    """The mark is read in one transaction, and the effect is in another."""

    def do(self, message: Any) -> Any:
        known = self.in_a_transaction(lambda: lambda: self.known(message.call.idempotency_key))
        if known[0] is None:
            self.actions[message.call.action].prepare(message)
            self.in_a_transaction(lambda: self.forgets(message.call.idempotency_key))
        return self.in_a_transaction(lambda: self.do_once(self.actions[message.call.action], message))

    def forgets(self, key: str) -> Any:
        self.db.execute("DELETE FROM marks WHERE key = ?", (key,))
        return lambda: None


@breaks("undo-with-output")
class UndoesOnlyWhatItSaw(ActionServer):
    def undo_once(self, action: Any, message: Any) -> Any:
        message.ClearField("output")
        return super().undo_once(action, message)


@breaks("stale-epoch")
class IgnoresEpochs(ActionServer):
    def stale(self, call: Any) -> Any:
        return None


@breaks("stale-epoch")
class AnswersKnownKeysFirst(ActionServer):
    def do_once(self, action: Any, message: Any) -> Any:
        mark, answer = self.known(message.call.idempotency_key)
        if mark == DONE:
            self.stale(message.call)
            return lambda: pb.DoResponse.FromString(answer)
        return super().do_once(action, message)


@breaks("stale-epoch")
class RefusesByAFailure(ActionServer):
    def do_once(self, action: Any, message: Any) -> Any:
        if self.stale(message.call):
            return lambda: pb.DoResponse(failure=common_pb2.Error(message="The epoch is stale."))
        return super().do_once(action, message)


@breaks("new-epoch")
class RollsTheEpochBack(ActionServer):
    def do_once(self, action: Any, message: Any) -> Any:
        before = self.db.execute("SELECT epoch FROM epochs WHERE saga_uid = ?", (message.call.saga_uid,)).fetchone() or (0,)
        answer = super().do_once(action, message)
        if self.known(message.call.idempotency_key)[0] in (None, FAILED):
            self.db.execute("UPDATE epochs SET epoch = ? WHERE saga_uid = ?", (before[0], message.call.saga_uid))
        return answer


@breaks("new-epoch")
class KeepsEpochsAsFloats(ActionServer):
    def stale(self, call: Any) -> Any:
        call.epoch = min(int(float(call.epoch)), 2**63 - 1)
        return super().stale(call)


@breaks("epoch-per-saga")
class CountsEpochsOverAll(ActionServer):
    def stale(self, call: Any) -> Any:
        call = pb.Call(saga_uid="all", epoch=call.epoch)
        return super().stale(call)


@breaks("one-answer")
class SaysNothing(ActionServer):
    def do_once(self, action: Any, message: Any) -> Any:
        super().do_once(action, message)
        return pb.DoResponse


@breaks("failure")
class ForgetsFailures(ActionServer):
    def remember(self, key: str, mark: str, answer: bytes) -> None:
        if mark != FAILED:
            super().remember(key, mark, answer)


@breaks("failure")
class LeavesTheEffectOfAFailure(ActionServer):
    def do_once(self, action: Any, message: Any) -> Any:
        answer = super().do_once(action, message)
        if self.known(message.call.idempotency_key)[0] == FAILED:
            self.db.execute("INSERT OR IGNORE INTO balances VALUES (?, 3)", (message.call.saga_uid,))
        return answer


@breaks("undo-failure")
class TakesAFailedUndoForFinal(ActionServer):
    def undo_once(self, action: Any, message: Any) -> Any:
        if self.known(message.call.idempotency_key)[0] == UNDO_FAILED:
            return lambda: pb.UndoResponse(failure=common_pb2.Error(message="It failed before."))
        return super().undo_once(action, message)


@breaks("in-doubt")
class AnswersThoughItsUndoFailed(ActionServer):
    def remember(self, key: str, mark: str, answer: bytes) -> None:
        super().remember(key, DONE if mark == UNDO_FAILED else mark, answer)


@breaks("not-offered")
class TakesAnotherWordForNotOffered(ActionServer):
    def offered(self, call: Any) -> Any:
        if call.action not in self.actions:
            raise LookupError(call.action)
        return super().offered(call)


@breaks("unknown-outcome")
class FailsWhenInDoubt(ActionServer):
    def do_once(self, action: Any, message: Any) -> Any:
        answer = super().do_once(action, message)
        if self.known(message.call.idempotency_key)[0] is None:
            return lambda: pb.DoResponse(failure=common_pb2.Error(message="It did not work."))
        return answer


@breaks("unknown-outcome")
class UndoesOnlyWithAnOutput(ActionServer):
    def undo_once(self, action: Any, message: Any) -> Any:
        if message.HasField("output"):
            return super().undo_once(action, message)
        if stale := self.stale(message.call):
            return stale
        self.remember(message.call.idempotency_key, UNDONE, b"")
        return pb.UndoResponse


@breaks("deadline")
class FailsAtTheDeadline(ActionServer):
    def Do(self, message: Any, context: Any) -> Any:  # noqa: N802 # gRPC's name
        self.offered(message.call).prepare(message)
        if not context.is_active():
            self.in_a_transaction(lambda: lambda: self.remember(message.call.idempotency_key, UNDONE, b""))
        return super().Do(message, context)


@breaks("cancelled")
class HasTheEffectOfWhatIsCancelled(ActionServer):
    def do_once(self, action: Any, message: Any) -> Any:
        answer = super().do_once(action, message)
        if message.call.cancelled:
            return lambda: pb.DoResponse(failure=common_pb2.Error(message="Nobody wants it."))
        return answer


@breaks("payloads")
class TakesPayloadsForText(ActionServer):
    def do_once(self, action: Any, message: Any) -> Any:
        for payload in message.inputs.values():
            payload.data = payload.data.decode(errors="replace").encode()
        return super().do_once(action, message)


@breaks("payloads")
class TakesAllForJson(ActionServer):
    def do_once(self, action: Any, message: Any) -> Any:
        for payload in message.inputs.values():
            payload.content_type = "application/json"
        return super().do_once(action, message)


@breaks("concurrency")
class ReadsAndThenWrites(ActionServer):
    """Two dos of one saga read the same balance, and one of them is lost."""

    def do(self, message: Any) -> Any:
        if message.call.action != "conformance.add":
            return super().do(message)
        with self.one_at_a_time:
            before = self.db.execute("SELECT balance FROM balances WHERE saga_uid = ?", (message.call.saga_uid,)).fetchone()
        time.sleep(0.01)
        answer = super().do(message)
        with self.one_at_a_time:
            amount = add(sqlite_copy(), message).data
            total = int(amount) + (before[0] if before else 0)
            self.db.execute("UPDATE balances SET balance = ? WHERE saga_uid = ?", (total, message.call.saga_uid))
        return answer


def sqlite_copy() -> sqlite3.Connection:
    copy = sqlite3.connect(":memory:")
    copy.executescript(TABLES)
    return copy


@breaks("describe")
class DescribesNothing(ActionServer):
    def Describe(self, message: Any, context: Any) -> Any:  # noqa: N802 # gRPC's name
        return pb.DescribeResponse(server_name=self.name)


@breaks("describe")
class DescribesTwice(ActionServer):
    def Describe(self, message: Any, context: Any) -> Any:  # noqa: N802 # as above
        answer = super().Describe(message, context)
        answer.actions.append(answer.actions[0])
        return answer


@breaks("describe")
class DescribesWhenIdle(ActionServer):
    def do(self, message: Any) -> Any:
        action = self.offered(message.call)
        with self.one_at_a_time:
            action.prepare(message)
        return self.in_a_transaction(lambda: self.do_once(action, message))

    def Describe(self, message: Any, context: Any) -> Any:  # noqa: N802 # as above
        with self.one_at_a_time:
            return super().Describe(message, context)


BREACHES += [
    Breach("IsNotServing", "health", health=health_pb2.HealthCheckResponse.NOT_SERVING),
    Breach("TakesSmallCallsOnly", "large-calls", largest_call=4 * 1024 * 1024),
]


@contextmanager
def serving(breach: Breach) -> Iterator[str]:
    """A server with the breach; yields its address."""
    threads = futures.ThreadPoolExecutor(64)
    server = grpc.server(threads, options=[("grpc.max_receive_message_length", breach.largest_call)])
    service = breach.server("broken", CONFORMANCE, ":memory:", TABLES)
    action_server_pb2_grpc.add_ActionServerServicer_to_server(service, server)
    healthy = health.HealthServicer()
    healthy.set("sec.v1.ActionServer", breach.health)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
        threads.shutdown()
        service.db.close()
