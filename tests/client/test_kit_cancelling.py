"""What handlers hear of it when nobody wants their effect any more."""

import asyncio
import threading
from typing import Any

import grpc
import grpc.aio
from client_support import Actions, eventually, serving, status_of
from sec_client.kit import ActionFailed, ActionServer, Call, MemoryStore, SqliteStore
from sec_protos.v1 import action_server_pb2 as pb


class Held:
    """An action server whose action "hold" says that it has begun, and then either waits to be cancelled and ends early, or goes on until `gate`."""

    def __init__(self, *, ends_early: bool = True) -> None:
        self.server = ActionServer("held", store=MemoryStore())
        self.calls: list[Call] = []
        self.undone: list[Call] = []
        self.gate = asyncio.Event()
        self._ends_early = ends_early
        self.server.action("hold", undo=self.undo)(self.hold)

    async def hold(self, call: Call) -> str:
        self.calls.append(call)
        if self._ends_early:
            await call.wait_cancelled()
            call.raise_if_cancelled()
        await self.gate.wait()
        return f"cancelled: {call.cancelled}"

    async def undo(self, call: Call) -> None:
        self.undone.append(call)

    async def begun(self, count: int = 1) -> None:
        await eventually(lambda: len(self.calls) == count)


def batched(number: int, key: str, *, cancelled: bool = False) -> pb.BatchedCall:
    about = Actions.about("hold", key, 1, "u1")
    about.cancelled = cancelled
    return pb.BatchedCall(id=number, do_request=pb.DoRequest(call=about), timeout_s=60)


async def done(call: Any) -> Any:
    """A call as a coroutine."""
    return await call


async def answer_of(stream: Any) -> pb.BatchedAnswer:
    (answer,) = (await stream.read()).answers
    return answer  # type: ignore[no-any-return]


async def test_an_action_under_way_is_told_and_may_end_early_without_an_effect() -> None:
    held = Held()
    async with serving(held.server) as actions:
        stream = actions.stub.Batch()
        await stream.write(pb.BatchRequest(calls=[batched(1, "k1")]))
        await held.begun()
        assert not held.calls[0].cancelled
        await stream.write(pb.BatchRequest(cancelled=[1, 2, 77]))
        answer = await answer_of(stream)
        assert (answer.id, answer.do_response.failure.code) == (1, "cancelled")
        again = await actions.do("hold", "k1")
        assert again.failure.code == "cancelled", "the key stays failed"
        await actions.undo("hold", "k1")
    assert len(held.calls) == 1
    assert not held.undone


async def test_an_action_that_goes_on_has_its_effect() -> None:
    held = Held(ends_early=False)
    async with serving(held.server) as actions:
        stream = actions.stub.Batch()
        await stream.write(pb.BatchRequest(calls=[batched(1, "k1"), batched(2, "k2")]))
        await held.begun(2)
        await stream.write(pb.BatchRequest(cancelled=[1]))
        await eventually(lambda: any(call.cancelled for call in held.calls))
        held.gate.set()
        answers = await _read(stream, 2)
    outputs = {answer.id: answer.do_response.output.data for answer in answers}
    assert outputs == {1: b'"cancelled: True"', 2: b'"cancelled: False"'}, "one call is cancelled, and not the one beside it"


async def test_a_cancelled_action_that_has_not_begun_does_not_begin() -> None:
    held = Held()
    async with serving(held.server) as actions:
        stream = actions.stub.Batch()
        await stream.write(pb.BatchRequest(calls=[batched(1, "k1", cancelled=True)]))
        assert (await answer_of(stream)).do_response.failure.code == "cancelled"
        await stream.write(pb.BatchRequest(calls=[batched(2, "k2")], cancelled=[2]))
        assert (await answer_of(stream)).do_response.failure.code == "cancelled"
        alone = pb.DoRequest(call=Actions.about("hold", "k3", 1, "u1"))
        alone.call.cancelled = True
        assert (await actions.stub.Do(alone)).failure.code == "cancelled", "by itself too"
    assert not held.calls


async def test_a_cancelled_action_that_may_have_begun_is_run_and_told() -> None:
    """What an earlier call did is not known: only the handler can say that there is no effect."""
    server, seen = ActionServer("twice", store=MemoryStore()), []

    @server.action(undo=None)
    async def hold(call: Call) -> str:
        seen.append(call.cancelled)
        if not call.cancelled:
            raise RuntimeError("for the test")
        return "had its effect"

    async with serving(server) as actions:
        assert (await status_of(actions.do("hold", "k1")))[0] is grpc.StatusCode.INTERNAL
        message = pb.DoRequest(call=Actions.about("hold", "k1", 1, "u1"))
        message.call.cancelled = True
        assert (await actions.stub.Do(message)).output.data == b'"had its effect"'
    assert seen == [False, True]


async def test_an_undo_that_waits_for_its_action_says_that_it_is_not_wanted() -> None:
    held = Held()
    async with serving(held.server) as actions:
        do = asyncio.create_task(done(actions.do("hold", "k1", epoch=2)))
        await held.begun()
        assert (await status_of(actions.undo("hold", "k1", epoch=1)))[0] is grpc.StatusCode.FAILED_PRECONDITION
        assert not held.calls[0].cancelled, "a former owner says nothing"
        assert not (await actions.undo("hold", "k1", epoch=2)).HasField("failure")
        assert (await do).failure.code == "cancelled"
    assert not held.undone, "what failed has no effect to undo"


async def test_cancelling_a_call_that_waits_reaches_the_handler_of_the_one_before_it() -> None:
    held = Held()
    async with serving(held.server) as actions:
        stream = actions.stub.Batch()
        await stream.write(pb.BatchRequest(calls=[batched(1, "k1")]))
        await held.begun()
        await stream.write(pb.BatchRequest(calls=[batched(2, "k1")], cancelled=[2]))
        answers = {answer.id: answer.do_response.failure.code for answer in await _read(stream, 2)}
    assert answers == {1: "cancelled", 2: "cancelled"}
    assert len(held.calls) == 1


async def test_an_undo_is_never_cancelled_and_a_handler_on_a_thread_can_ask() -> None:
    server, begun, seen = ActionServer("threads", store=MemoryStore()), threading.Event(), []

    def undo(call: Call) -> None:
        call.raise_if_cancelled()
        seen.append((call.phase.value, call.cancelled))

    @server.action(undo=undo)
    def hold(call: Call) -> None:
        begun.set()
        while not call.cancelled:
            threading.Event().wait(0.005)
        seen.append((call.phase.value, call.cancelled))

    async with serving(server) as actions:
        do = asyncio.create_task(done(actions.do("hold", "k1")))
        await asyncio.to_thread(begun.wait)
        assert not (await actions.undo("hold", "k1")).HasField("failure")
        assert (await do).HasField("output")
    assert seen == [("do", True), ("undo", False)]


async def test_an_effect_in_the_servers_own_file_is_taken_back_with_an_early_end(tmp_path: Any) -> None:
    server, begun = ActionServer("file", store=SqliteStore(tmp_path / "kit.db")), asyncio.Event()

    @server.action(undo=None)
    async def hold(call: Call) -> int:
        db = await call.open_db()
        db.execute("CREATE TABLE IF NOT EXISTS effects (key TEXT)")
        if call.key == "count":
            return int(db.execute("SELECT count(*) FROM effects").fetchone()[0])
        db.execute("INSERT INTO effects VALUES (?)", (call.key,))
        begun.set()
        await call.wait_cancelled()
        call.raise_if_cancelled()
        raise ActionFailed("It was not cancelled.")

    async with serving(server) as actions:
        stream = actions.stub.Batch()
        await stream.write(pb.BatchRequest(calls=[batched(1, "k1")]))
        await begun.wait()
        await stream.write(pb.BatchRequest(cancelled=[1]))
        assert (await answer_of(stream)).do_response.failure.code == "cancelled"
        assert (await actions.do("hold", "count")).output.data == b"0"


async def _read(stream: Any, count: int) -> list[pb.BatchedAnswer]:
    """That many answers at least, of as many messages as they come in."""
    answers: list[pb.BatchedAnswer] = []
    while len(answers) < count:
        answers += (await stream.read()).answers
    return answers
