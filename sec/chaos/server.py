"""The action server of a chaos run, in a process of its own: `python -m sec.chaos.server FOLDER NAME PORT FRONT SEC_ADDRESSES`.
It listens on a port, and others reach it at another, its front.

Its effects are rows of the kit's own SQLite file, which all action servers of the run share: what is in the table `inventory` is in the world,
and `had` tells of each effect that was had or taken back, in the same transaction. What arrives goes into a journal of this process.
How the action behaves at a node stands in the params of the saga (`sec.chaos.plan.Manner`).
"""

import asyncio
import contextlib
import itertools
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO, Any

import grpc
import grpc.aio
from sec_client.kit import ActionFailed, ActionServer, Call, Incoming, Response, SqliteStore, Status, Unavailable
from sec_model.codec import payload_from_proto
from sec_protos.v1 import action_server_pb2 as pb
from sec_protos.v1 import action_server_pb2_grpc

from sec.chaos.history import now_us, write_line
from sec.chaos.plan import ACTION

DATABASE = "world.db"
_TABLES = (
    "CREATE TABLE IF NOT EXISTS inventory (key TEXT PRIMARY KEY, saga_id TEXT NOT NULL, node TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS had (key TEXT, phase TEXT, saga_id TEXT, node TEXT, epoch INTEGER, at_us INTEGER)",
)
_AGAIN = ("sec-chaos-again", "1")
"""Metadata of a delivery that this server makes to itself."""
_AGAIN_TIMEOUT_S = 10.0

Deliver = Callable[[], Awaitable[Response | Status]]


def journal_of(folder: Path, name: str) -> Path:
    """The journal of the action server of this name."""
    return folder / f"{name}.journal.jsonl"


async def do(call: Call) -> str:
    await _behave(call, "fail")
    db = await _open(call)
    db.execute("INSERT INTO inventory VALUES (?, ?, ?)", (call.key, call.saga_id, call.node))
    db.execute("INSERT INTO had VALUES (?, 'do', ?, ?, ?, ?)", (call.key, call.saga_id, call.node, call.epoch, now_us()))
    return call.node


async def undo(call: Call) -> None:
    await _behave(call, "undo_fail")
    db = await _open(call)
    taken = db.execute("DELETE FROM inventory WHERE key = ?", (call.key,)).rowcount
    if taken:  # the action may never have happened
        db.execute("INSERT INTO had VALUES (?, 'undo', ?, ?, ?, ?)", (call.key, call.saga_id, call.node, call.epoch, now_us()))


async def _behave(call: Call, fail: str) -> None:
    params = call.params or {}
    await asyncio.sleep(params.get("slow", {}).get(call.node, 0.0))
    if call.attempt <= params.get("unavailable", {}).get(call.node, 0):
        raise Unavailable(f"{call.node} is not there for its first attempts")
    if call.attempt <= params.get(fail, {}).get(call.node, 0):
        raise ActionFailed(f"{call.node} does not work")


async def _open(call: Call) -> Any:
    db = await call.open_db()
    for table in _TABLES:
        db.execute(table)
    return db


class Journal:
    """Middleware that writes down each delivery before the kit sees it, and its answer; makes deliveries come twice, late or never, and answers too.

    What comes again later comes through the port, as from outside, with all that the SEC node had sent.
    """

    def __init__(self, file: IO[str], address: str = "") -> None:
        self.address = address
        """Where the server listens."""
        self._file = file
        self._numbers = itertools.count(1)
        self._later: set[asyncio.Task[None]] = set()

    async def __call__(self, incoming: Incoming, deliver: Deliver) -> Response | Status:
        message, about = incoming.message, incoming.message.call
        params = payload_from_proto(message.params).value() or {}
        if _AGAIN[0] in incoming.metadata:
            return await self._one(incoming, deliver, again=True)
        astray = params.get("astray", {}).get(about.node, 0)
        if about.attempt <= (astray if isinstance(message, pb.DoRequest) else min(astray, 1)):
            self._deliver_later(message, params["astray_s"][about.node])
            return Status(grpc.StatusCode.UNAVAILABLE, "The delivery has gone astray on purpose.")
        if (again_s := params.get("again", {}).get(about.node)) is not None:
            self._deliver_later(message, again_s)
        answer = await self._one(incoming, deliver)
        if about.attempt <= params.get("twice", {}).get(about.node, 0):
            answer = await self._one(incoming, deliver)
        await asyncio.sleep(params.get("late", {}).get(about.node, 0.0))
        if about.attempt <= params.get("lost", {}).get(about.node, 0):
            return Status(grpc.StatusCode.UNAVAILABLE, "The answer is lost on purpose.")
        return answer

    def _deliver_later(self, message: pb.DoRequest | pb.UndoRequest, after_s: float) -> None:
        task = asyncio.create_task(self._deliver_again(message, after_s))
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    async def _deliver_again(self, message: pb.DoRequest | pb.UndoRequest, after_s: float) -> None:
        await asyncio.sleep(after_s)
        async with grpc.aio.insecure_channel(self.address) as channel:
            stub = action_server_pb2_grpc.ActionServerStub(channel)
            with contextlib.suppress(grpc.aio.AioRpcError):  # whatever it is answered is in the journal
                if isinstance(message, pb.DoRequest):
                    await stub.Do(message, timeout=_AGAIN_TIMEOUT_S, metadata=(_AGAIN,))
                else:
                    await stub.Undo(message, timeout=_AGAIN_TIMEOUT_S, metadata=(_AGAIN,))

    async def _one(self, incoming: Incoming, deliver: Deliver, *, again: bool = False) -> Response | Status:
        about = incoming.message.call
        number = f"{os.getpid()}-{next(self._numbers)}"
        arrival = {
            "id": number,
            "at_us": now_us(),
            "saga_id": about.saga_id,
            "node": about.node,
            "phase": "do" if isinstance(incoming.message, pb.DoRequest) else "undo",
            "key": about.idempotency_key,
            "epoch": about.epoch,
            "attempt": about.attempt,
            "sec_node": about.sec_node,
            "again": again,
            "batched": incoming.batched,
        }
        write_line(self._file, arrival)
        outcome = "cut off"
        try:
            answer = await deliver()
            outcome = answer.code.name if isinstance(answer, Status) else "failure" if answer.HasField("failure") else "output"
        finally:
            write_line(self._file, {"id": number, "outcome": outcome, "end_us": now_us()})
        return answer


def make_server(folder: Path, name: str, journal: Journal) -> ActionServer:
    """The server, which keeps its marks and effects in `folder`."""
    server = ActionServer(name, store=SqliteStore(folder / DATABASE), max_concurrency=500, middleware=journal)
    server.action(ACTION)(do).undo(undo)
    return server


def main(folder: Path, name: str, port: int, front: int, sec: str) -> None:
    """Serves until SIGTERM."""
    address = f"127.0.0.1:{port}"
    with journal_of(folder, name).open("a", encoding="utf-8") as file:
        make_server(folder, name, Journal(file, address)).run(address, sec=sec, advertise=f"127.0.0.1:{front}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
