"""The plain example in Python with `Batch`: what the breaches of batches are planted in. A thread reads each stream, and each call has one of a pool."""

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from contract import ActionServer, Refused
from sec_protos.v1 import action_server_pb2 as pb

THREADS = 64


class Stream:
    """What has been answered and is not sent yet, and how much is in hand."""

    def __init__(self) -> None:
        self.answers: queue.SimpleQueue[pb.BatchedAnswer | None] = queue.SimpleQueue()
        self.gone = threading.Event()
        self._in_hand = 1  # the reading itself
        self._lock = threading.Lock()

    def begin(self) -> None:
        with self._lock:
            self._in_hand += 1

    def finish(self) -> None:
        with self._lock:
            self._in_hand -= 1
            if self._in_hand == 0:
                self.answers.put(None)

    def break_off(self) -> None:
        self.gone.set()
        self.answers.put(None)


class Batching(ActionServer):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.pool = ThreadPoolExecutor(THREADS)
        self.threads: list[threading.Thread] = []

    def in_a_thread(self, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self.threads.append(thread)
        thread.start()

    def join(self) -> None:
        """Waits for all that was begun, of streams that have ended too: a call that finds its database closed crashes the process."""
        for thread in self.threads:
            thread.join()
        self.pool.shutdown()

    def Describe(self, message: Any, context: Any) -> Any:  # noqa: N802 # gRPC's name
        answer = super().Describe(message, context)
        answer.batches = True
        return answer

    def Batch(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:  # noqa: N802 # as above
        stream = Stream()
        context.add_callback(stream.break_off)
        self.in_a_thread(self.read, requests, stream, context)
        while (answer := stream.answers.get()) is not None:
            yield pb.BatchResponse(answers=[answer])

    def read(self, requests: Iterator[Any], stream: Stream, context: Any) -> None:
        try:
            for message in requests:
                self.take(message, stream, context)
        except grpc.RpcError:
            pass  # the stream broke off
        finally:
            stream.finish()

    def take(self, message: Any, stream: Stream, context: Any) -> None:
        for call in message.calls:
            self.begin(stream, lambda call=call: self.one(call))

    def begin(self, stream: Stream, answer: Callable[[], pb.BatchedAnswer]) -> None:
        stream.begin()

        def run() -> None:
            try:
                stream.answers.put(answer())
            finally:
                stream.finish()

        self.pool.submit(run)

    def one(self, call: Any) -> pb.BatchedAnswer:
        try:
            if call.WhichOneof("request") == "do_request":
                return pb.BatchedAnswer(id=call.id, do_response=self.do(call.do_request))
            return pb.BatchedAnswer(id=call.id, undo_response=self.undo(call.undo_request))
        except Refused as refused:
            return self.status(call, refused.code, str(refused))
        except Exception as error:
            return self.status(call, grpc.StatusCode.UNKNOWN, str(error))

    def status(self, call: Any, code: grpc.StatusCode, message: str) -> pb.BatchedAnswer:
        return pb.BatchedAnswer(id=call.id, status=pb.BatchedStatus(code=code.value[0], message=message))
