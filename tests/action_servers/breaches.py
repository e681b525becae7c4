"""Action servers that break the contract on purpose: the plain example in Python, each with one thing wrong."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from actions import CONFORMANCE, TABLES, add
from batching import Batching, Stream
from contract import DONE, FAILED, UNDO_FAILED, UNDONE, ActionServer, refusal
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from sec_protos.v1 import action_server_pb2 as pb
from sec_protos.v1 import action_server_pb2_grpc, common_pb2

LARGEST_CALL = 64 * 1024 * 1024
IN_HAND_S = 30


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
            with closing(sqlite_copy()) as copy:
                amount = add(copy, message).data
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


@breaks("batch-answers")
class AnswersByPlace(Batching):
    def take(self, message: Any, stream: Stream, context: Any) -> None:
        for place, call in enumerate(message.calls, 1):
            call.id = place
        super().take(message, stream, context)


@breaks("batch-answers")
class KeepsIdsAsFloats(Batching):
    def one(self, call: Any) -> Any:
        call.id = min(int(float(call.id)), 2**64 - 1)
        return super().one(call)


@breaks("batch-answers")
class AnswersEachTwice(Batching):
    def take(self, message: Any, stream: Stream, context: Any) -> None:
        super().take(message, stream, context)
        super().take(message, stream, context)


@breaks("batch-answers")
class HasOneStatusForAll(Batching):
    def status(self, call: Any, code: grpc.StatusCode, message: str) -> Any:
        return super().status(call, grpc.StatusCode.UNKNOWN, "Something went wrong.")


@breaks("batch-answers")
class TakesOkForAStatus(Batching):
    def one(self, call: Any) -> Any:
        answer = super().one(call)
        if answer.WhichOneof("result") == "undo_response":
            answer.status.code = 0
        return answer


@breaks("batch-answers")
class EndsTheStreamForOne(Batching):
    def take(self, message: Any, stream: Stream, context: Any) -> None:
        if any(call.do_request.call.action == "conformance.none" for call in message.calls):
            stream.break_off()
        super().take(message, stream, context)


@breaks("batch-answers")
class OnlySaysThatItTakesBatches(Batching):
    def Batch(self, requests: Any, context: Any) -> Any:  # noqa: N802 # gRPC's name
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "Not yet.")


@breaks("batch-apart")
class AnswersAMessageAtOnce(Batching):
    def take(self, message: Any, stream: Stream, context: Any) -> None:
        stream.begin()

        def run() -> None:
            for answer in [*self.pool.map(self.one, message.calls)]:
                stream.answers.put(answer)
            stream.finish()

        self.in_a_thread(run)


@breaks("batch-apart")
class TakesOneMessageAfterTheOther(Batching):
    def take(self, message: Any, stream: Stream, context: Any) -> None:
        for answering in [self.pool.submit(self.one, call) for call in message.calls]:
            answering.add_done_callback(lambda done: stream.answers.put(done.result()))
            if len(message.calls) == 1:
                answering.result()


@breaks("batch-same")
class ForgetsEpochsOfBatches(Batching):
    def one(self, call: Any) -> Any:
        (call.do_request if call.HasField("do_request") else call.undo_request).call.epoch = 2**63 - 1
        return super().one(call)


@breaks("batch-same")
class KnowsABatchFromACall(Batching):
    def one(self, call: Any) -> Any:
        (call.do_request if call.HasField("do_request") else call.undo_request).call.idempotency_key += "/batched"
        return super().one(call)


@breaks("batch-same")
class KnowsOneMessageFromAnother(Batching):
    def take(self, message: Any, stream: Stream, context: Any) -> None:
        for call in message.calls:
            about = (call.do_request if call.HasField("do_request") else call.undo_request).call
            about.idempotency_key += f"/{message.calls[0].id}"
        super().take(message, stream, context)


@breaks("batch-limits")
class EndsAllAtTheFirstLimit(Batching):
    def take(self, message: Any, stream: Stream, context: Any) -> None:
        first = min(call.timeout_s for call in message.calls)
        if first > 1:
            super().take(message, stream, context)
            return
        for call in message.calls:
            stream.answers.put(self.status(call, grpc.StatusCode.DEADLINE_EXCEEDED, "It is over."))
            self.pool.submit(self.one, call)


@breaks("batch-limits")
class FailsAtTheLimit(Batching):
    def one(self, call: Any) -> Any:
        begun = time.monotonic()
        answer = super().one(call)
        if time.monotonic() - begun > call.timeout_s and call.HasField("do_request"):
            key = call.do_request.call.idempotency_key
            with self.one_at_a_time:
                self.remember(key, UNDONE, b"")
        return answer


@breaks("batch-room")
class TakesAHundredAtOnce(Batching):
    def take(self, message: Any, stream: Stream, context: Any) -> None:
        if len(message.calls) > 100:
            stream.break_off()
        super().take(message, stream, context)


@breaks("batch-room")
class DropsWhatItHasNoRoomFor(Batching):
    def take(self, message: Any, stream: Stream, context: Any) -> None:
        del message.calls[100:]
        super().take(message, stream, context)


@breaks("batch-end")
class ForgetsWhatItHadInHand(Batching):
    """What ends after its stream is done, and not marked as done. A do that comes for the first time is in hand until its stream has ended, however long that takes."""

    def take(self, message: Any, stream: Stream, context: Any) -> None:
        for call in message.calls:
            self.begin(stream, lambda call=call: self.forget(call, stream))

    def forget(self, call: Any, stream: Stream) -> Any:
        answered = self.one(call)
        about = call.do_request.call
        if (about.action, about.attempt) == ("conformance.add", 1) and stream.gone.wait(IN_HAND_S):
            with self.one_at_a_time:
                self.db.execute("DELETE FROM marks")
        return answered


@breaks("batch-end")
class ServesOneStreamOfEach(Batching):
    """Of a peer only the first stream is served, as by one that takes the next for a mistake."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.peers: set[str] = set()

    def Batch(self, requests: Any, context: Any) -> Any:  # noqa: N802 # gRPC's name
        if context.peer() in self.peers:
            context.abort(grpc.StatusCode.UNAVAILABLE, "There is one already.")
        self.peers.add(context.peer())
        yield from super().Batch(requests, context)


BREACHES += [
    Breach("IsNotServing", "health", health=health_pb2.HealthCheckResponse.NOT_SERVING),
    Breach("TakesSmallCallsOnly", "large-calls", largest_call=4 * 1024 * 1024),
    Breach("TakesSmallMessagesOnly", "batch-room", Batching, largest_call=4 * 1024 * 1024),
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
        if isinstance(service, Batching):
            service.join()
        service.db.close()
