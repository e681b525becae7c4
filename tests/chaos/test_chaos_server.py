"""The action server of a chaos run: it behaves as the params of the saga say, and writes down what came to it."""

import sqlite3
from collections.abc import AsyncIterator, Awaitable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from sec_model import Payload
from sec_model.codec import payload_to_proto
from sec_protos.v1 import action_server_pb2 as pb
from sec_protos.v1 import action_server_pb2_grpc
from waiting_support import until

from sec.chaos.history import Delivery, read_deliveries
from sec.chaos.plan import ACTION, ALWAYS, Manner
from sec.chaos.server import DATABASE, Journal, journal_of, make_server

TIMEOUT_S = 30.0


class Calls:
    """Calls the server as an SEC node would."""

    def __init__(self, folder: Path, channel: grpc.aio.Channel) -> None:
        self.folder = folder
        self._stub = action_server_pb2_grpc.ActionServerStub(channel)

    def do(self, manner: Manner, attempt: int = 1, epoch: int = 1) -> Any:
        return self._stub.Do(pb.DoRequest(call=_about(attempt, epoch), params=_params(manner)), timeout=TIMEOUT_S)

    def undo(self, manner: Manner, attempt: int = 1, epoch: int = 1) -> Any:
        return self._stub.Undo(pb.UndoRequest(call=_about(attempt, epoch), params=_params(manner)), timeout=TIMEOUT_S)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        db = sqlite3.connect(self.folder / DATABASE)
        try:
            return db.execute(sql).fetchall()
        finally:
            db.close()

    @property
    def journal(self) -> list[Delivery]:
        return read_deliveries(journal_of(self.folder, "server-1"))


def _about(attempt: int, epoch: int) -> pb.Call:
    return pb.Call(
        saga_id="s", saga_uid="u", node="a", action=ACTION, idempotency_key="u/a", epoch=epoch, attempt=attempt, sec_node="sec-1"
    )


def _params(manner: Manner) -> Any:
    return payload_to_proto(Payload.json(manner.to_params()))


@pytest.fixture
async def calls(tmp_path: Path) -> AsyncIterator[Calls]:
    with journal_of(tmp_path, "server-1").open("a") as file:
        journal = Journal(file)
        server = make_server(tmp_path, "server-1", journal)
        await server.start()
        journal.address = f"127.0.0.1:{server.port}"
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            yield Calls(tmp_path, channel)
        await server.stop(1.0)


async def status(call: Awaitable[Any]) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value.code()


async def test_an_effect_is_had_and_taken_back_and_both_are_told(calls: Calls) -> None:
    assert (await calls.do(Manner())).HasField("output")
    assert calls.rows("SELECT saga_id, node FROM inventory") == [("s", "a")]
    assert not (await calls.undo(Manner())).HasField("failure")
    assert calls.rows("SELECT saga_id, node FROM inventory") == []
    assert calls.rows("SELECT phase, saga_id, node, epoch FROM had") == [("do", "s", "a", 1), ("undo", "s", "a", 1)]
    done, undone = calls.journal
    assert (done.phase, done.saga_id, done.node, done.key, done.epoch, done.attempt) == ("do", "s", "a", "u/a", 1, 1)
    assert (undone.phase, undone.sec_node, undone.outcome) == ("undo", "sec-1", "output")
    assert done.at_us <= done.end_us <= undone.at_us


async def test_an_answer_that_is_lost_leaves_its_effect(calls: Calls) -> None:
    manner = Manner(lost={"a": 1})
    assert await status(calls.do(manner)) is grpc.StatusCode.UNAVAILABLE
    assert calls.rows("SELECT node FROM inventory") == [("a",)]
    assert (await calls.do(manner, attempt=2)).HasField("output")
    assert calls.rows("SELECT count(*) FROM had") == [(1,)]
    assert [delivery.outcome for delivery in calls.journal] == ["output", "output"]


async def test_what_is_unavailable_at_first_has_no_effect_then(calls: Calls) -> None:
    manner = Manner(unavailable={"a": 1})
    assert await status(calls.do(manner)) is grpc.StatusCode.UNAVAILABLE
    assert (await calls.do(manner, attempt=2)).HasField("output")
    await until(lambda: [delivery.outcome for delivery in calls.journal] == ["UNAVAILABLE", "output"])
    assert calls.rows("SELECT count(*) FROM had") == [(1,)]


async def test_a_delivery_that_is_made_twice_has_one_effect(calls: Calls) -> None:
    assert (await calls.do(Manner(twice={"a": 1}))).HasField("output")
    assert len(calls.journal) == 2
    assert calls.rows("SELECT count(*) FROM had") == [(1,)]


async def test_an_action_and_an_undo_that_fail(calls: Calls) -> None:
    assert (await calls.undo(Manner(undo_fail={"a": ALWAYS}))).HasField("failure") is False, "there is nothing to undo"
    assert (await calls.do(Manner())).HasField("failure"), "the undo came first"
    assert [delivery.outcome for delivery in calls.journal] == ["output", "failure"]


async def test_a_call_of_an_owner_that_was_replaced_is_refused_and_told(calls: Calls) -> None:
    await calls.do(Manner(), epoch=2)
    assert await status(calls.do(Manner(), epoch=1)) is grpc.StatusCode.FAILED_PRECONDITION
    # A refusal is answered before it is written down.
    await until(lambda: [delivery.outcome for delivery in calls.journal] == ["output", "FAILED_PRECONDITION"])


async def test_a_delivery_that_comes_again_later_has_no_effect_of_its_own(calls: Calls) -> None:
    assert (await calls.do(Manner(again={"a": 0.0}))).HasField("output")
    await until(lambda: [bool(delivery.end_us) for delivery in calls.journal] == [True, True])
    first, second = sorted(calls.journal, key=lambda delivery: delivery.again)
    assert (first.again, second.again) == (False, True)
    assert replace(second, again=False, at_us=0, end_us=0) == replace(first, at_us=0, end_us=0), (
        "all is as the SEC node had sent it"
    )
    assert calls.rows("SELECT count(*) FROM had") == [(1,)]


async def test_a_delivery_that_went_astray_comes_when_its_undo_is_over_and_has_no_effect(calls: Calls) -> None:
    manner = Manner(astray={"a": 1}, astray_s={"a": 0.3})
    assert await status(calls.do(manner)) is grpc.StatusCode.UNAVAILABLE
    assert calls.journal == [], "it has not come yet"
    assert not (await calls.undo(Manner(), epoch=1)).HasField("failure")
    await until(lambda: len(calls.journal) == 2 and calls.journal[-1].end_us)
    undone, late = calls.journal
    assert (late.phase, late.again, late.outcome) == ("do", True, "failure")
    assert undone.phase == "undo"


async def test_a_delivery_that_comes_after_a_takeover_is_refused(calls: Calls) -> None:
    assert (await calls.do(Manner(again={"a": 0.3}), epoch=1)).HasField("output")
    assert (await calls.do(Manner(), epoch=2)).HasField("output")
    await until(lambda: len(calls.journal) == 3 and calls.journal[-1].end_us)
    assert (calls.journal[-1].epoch, calls.journal[-1].outcome) == (1, "FAILED_PRECONDITION")
