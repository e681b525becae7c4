"""The three obligations of the contract, over a real socket, with every kind of store, for calls by themselves and in batches."""

import asyncio
import functools
import multiprocessing
import sqlite3
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import client_support
import grpc
import pytest
from client_support import Actions, eventually, status_of
from sec_client.kit import ActionFailed, ActionServer, Call, Payload, SqliteStore, Store, StoreError, Unavailable
from sec_protos.v1 import action_server_pb2

serving = client_support.serving


class Inventory:
    """An action server whose effects are counted, and which fails as it is told."""

    def __init__(self, store: Store, **options: int) -> None:
        self.dos: list[Call] = []
        self.undos: list[Call] = []
        self.do_error: BaseException | None = None
        self.undo_error: BaseException | None = None
        self.server = ActionServer("inventory", store=store, **options)

        @self.server.action("take", summary="Takes one")
        def take(call: Call) -> object:
            self.dos.append(call)
            if self.do_error is not None:
                raise self.do_error
            return {"number": len(self.dos)}

        @take.undo
        def put_back(call: Call) -> None:
            self.undos.append(call)
            if self.undo_error is not None:
                raise self.undo_error


@pytest.fixture(autouse=True, params=[False, True], ids=["by themselves", "batched"])
def batched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "serving", functools.partial(client_support.serving, batched=request.param))


async def test_a_repeated_do_is_answered_as_before(store: Store) -> None:
    inventory = Inventory(store)
    async with serving(inventory.server) as actions:
        first, second = await actions.do("take"), await actions.do("take", epoch=2)
    assert first.output.data == b'{"number":1}'
    assert second == first
    assert len(inventory.dos) == 1


async def test_another_key_is_another_effect(store: Store) -> None:
    inventory = Inventory(store)
    async with serving(inventory.server) as actions:
        await actions.do("take", "k1")
        assert (await actions.do("take", "k2")).output.data == b'{"number":2}'


async def test_a_failure_is_stored(store: Store) -> None:
    inventory = Inventory(store)
    inventory.do_error = ActionFailed("None is left.", code="sold_out", data={"left": 0})
    async with serving(inventory.server) as actions:
        first = await actions.do("take")
        inventory.do_error = None
        assert await actions.do("take") == first
        assert (await actions.undo("take")) is not None
    assert (first.failure.message, first.failure.code, first.failure.data.data) == ("None is left.", "sold_out", b'{"left":0}')
    assert len(inventory.dos) == 1
    assert not inventory.undos


async def test_an_undo_gets_the_output_and_happens_once(store: Store) -> None:
    inventory = Inventory(store)
    async with serving(inventory.server) as actions:
        await actions.do("take")
        for _ in range(2):
            assert not (await actions.undo("take")).HasField("failure")
    [call] = inventory.undos
    assert call.output_known
    assert call.output == {"number": 1}


async def test_an_undo_before_its_do_succeeds_and_makes_the_do_a_failure(store: Store) -> None:
    inventory = Inventory(store)
    async with serving(inventory.server) as actions:
        assert not (await actions.undo("take")).HasField("failure")
        assert (await actions.do("take")).failure.code == "undone"
        assert not (await actions.undo("take")).HasField("failure")
    assert not inventory.dos
    assert not inventory.undos


async def test_an_undo_without_trace_that_brings_an_output_is_run(store: Store) -> None:
    inventory = Inventory(store)
    async with serving(inventory.server) as actions:
        await actions.undo("take", output={"number": 7})
    assert [call.output for call in inventory.undos] == [{"number": 7}]


async def test_a_do_after_its_undo_is_a_failure(store: Store) -> None:
    inventory = Inventory(store)
    async with serving(inventory.server) as actions:
        await actions.do("take")
        await actions.undo("take")
        assert (await actions.do("take")).failure.code == "undone"
    assert len(inventory.dos) == 1


async def test_a_stale_epoch_is_refused_and_has_no_effect(store: Store) -> None:
    inventory = Inventory(store)
    async with serving(inventory.server) as actions:
        await actions.do("take", "k1", epoch=5)
        code, text = await status_of(actions.do("take", "k2", epoch=4))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert text == 'Epoch 4 of saga "s1" is stale: an owner with epoch 5 has called.'
        assert (await status_of(actions.undo("take", "k1", epoch=4)))[0] is grpc.StatusCode.FAILED_PRECONDITION
        assert (await status_of(actions.do("take", "k1", epoch=4)))[0] is grpc.StatusCode.FAILED_PRECONDITION
        await actions.do("take", "k3", epoch=4, uid="another saga")
    assert [call.key for call in inventory.dos] == ["k1", "k3"]


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (Unavailable("The shop is closed."), grpc.StatusCode.UNAVAILABLE, "The shop is closed."),
        (KeyError("x"), grpc.StatusCode.INTERNAL, "KeyError: 'x'"),
        (SystemExit(3), grpc.StatusCode.INTERNAL, "RuntimeError: the handler raised SystemExit"),
        (StopIteration(), grpc.StatusCode.INTERNAL, "RuntimeError: the handler raised StopIteration"),
    ],
)
async def test_any_other_error_leaves_the_outcome_unknown(store: Store, error: BaseException, code: object, text: str) -> None:
    inventory = Inventory(store)
    inventory.do_error = error
    async with serving(inventory.server) as actions:
        assert await status_of(actions.do("take")) == (code, text)
        inventory.do_error = None
        assert (await actions.do("take")).output.data == b'{"number":2}'


async def test_an_undo_after_an_unknown_outcome_runs_without_output(store: Store) -> None:
    inventory = Inventory(store)
    inventory.do_error = KeyError()
    async with serving(inventory.server) as actions:
        await status_of(actions.do("take"))
        await actions.undo("take")
    [call] = inventory.undos
    assert not call.output_known
    assert call.output is None


async def test_an_undo_that_failed_can_be_repeated_by_an_operator(store: Store) -> None:
    inventory = Inventory(store)
    inventory.undo_error = ActionFailed("The shop burnt down.", code="gone")
    async with serving(inventory.server) as actions:
        await actions.do("take")
        assert (await actions.undo("take")).failure.code == "gone"
        code, text = await status_of(actions.do("take"))
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "has begun and has not finished" in text
        inventory.undo_error = None
        assert not (await actions.undo("take")).HasField("failure")
    assert [call.output for call in inventory.undos] == [{"number": 1}, {"number": 1}]


async def test_an_unknown_action_is_unimplemented(store: Store) -> None:
    async with serving(Inventory(store).server) as actions:
        code, text = await status_of(actions.do("resize"))
    assert (code, text) == (grpc.StatusCode.UNIMPLEMENTED, 'The action server "inventory" does not offer "resize".')


async def test_a_call_without_key_is_refused(store: Store) -> None:
    inventory = Inventory(store)
    async with serving(inventory.server) as actions:
        assert (await status_of(actions.do("take", "")))[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert not inventory.dos


async def test_marks_outlive_the_server(tmp_path: Path) -> None:
    path = tmp_path / "marks.db"
    inventory = Inventory(SqliteStore(path))
    async with serving(inventory.server) as actions:
        await actions.do("take", "done", epoch=7)
        await actions.undo("take", "undone", epoch=7)
    again = Inventory(SqliteStore(path))
    async with serving(again.server) as actions:
        assert (await actions.do("take", "done", epoch=7)).output.data == b'{"number":1}'
        assert (await actions.do("take", "undone", epoch=7)).failure.code == "undone"
        assert (await status_of(actions.do("take", "new", epoch=6)))[0] is grpc.StatusCode.FAILED_PRECONDITION
        await actions.undo("take", "done", epoch=7)
    assert not again.dos
    assert [call.output for call in again.undos] == [{"number": 1}]


async def test_one_file_serves_one_server_of_a_process(tmp_path: Path) -> None:
    async with serving(Inventory(SqliteStore(tmp_path / "marks.db")).server):
        with pytest.raises(StoreError, match="is open already in this process"):
            await Inventory(SqliteStore(tmp_path / "marks.db")).server.start()
        with pytest.raises(StoreError, match="is open already in this process"):
            await Inventory(SqliteStore(tmp_path / "marks.db")).server.start()


def open_new_stores(folder: Path, together: "Barrier", problems: "Queue[str]") -> None:
    """What each of several processes does: opens new stores, each at the same moment as the others."""

    async def open_one(path: Path) -> str:
        store = SqliteStore(path)
        try:
            await store.open("shared")
        except StoreError as error:
            return str(error)
        await store.close()
        return ""

    for number in range(40):
        together.wait(60)
        problems.put(asyncio.run(open_one(folder / f"{number}.db")))


def test_processes_can_open_a_new_file_at_the_same_moment(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    together, problems = context.Barrier(2), context.Queue()
    processes = [context.Process(target=open_new_stores, args=(tmp_path, together, problems)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [problems.get(timeout=60) for _ in range(80)] == [""] * 80
    for process in processes:
        process.join()


async def test_a_file_that_is_no_database_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "marks.db").write_text("this is no database, but it is long enough to look like a header" * 20)
    with pytest.raises(StoreError, match=r'The store ".*marks.db" cannot be opened: file is not a database'):
        await Inventory(SqliteStore(tmp_path / "marks.db")).server.start()


async def test_pruned_sagas_are_forgotten(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "marks.db")
    inventory = Inventory(store)
    async with serving(inventory.server) as actions:
        await actions.do("take")
        assert await store.prune(3600) == 0
        assert await store.prune(-10) == 1
        await actions.do("take")
    assert len(inventory.dos) == 2


class Gate:
    """A server with one async action that waits until it is let go on."""

    def __init__(self, store: Store, **options: int) -> None:
        self.entered = 0
        self.undos = 0
        self.open = asyncio.Event()
        self.server = ActionServer("gate", store=store, **options)

        @self.server.action()
        async def hold(call: Call) -> int:
            self.entered += 1
            await self.open.wait()
            return self.entered

        @hold.undo
        async def release(call: Call) -> None:
            assert self.open.is_set()
            self.undos += 1


async def test_deliveries_of_one_key_run_one_at_a_time(store: Store) -> None:
    gate = Gate(store)
    async with serving(gate.server) as actions:
        calls = [asyncio.ensure_future(actions.do("hold")) for _ in range(5)]
        await eventually(lambda: gate.entered == 1)
        gate.open.set()
        answers = [await call for call in calls]
    assert {answer.output.data for answer in answers} == {b"1"}
    assert gate.entered == 1


async def test_an_undo_waits_for_the_do_under_way(store: Store) -> None:
    gate = Gate(store)
    async with serving(gate.server) as actions:
        doing = asyncio.ensure_future(actions.do("hold"))
        await eventually(lambda: gate.entered == 1)
        undoing = asyncio.ensure_future(actions.undo("hold", epoch=2))
        # The epoch of a delivery that waits counts at once.
        await _refused(actions, epoch=1)
        gate.open.set()
        await doing
        await undoing
    assert gate.undos == 1


async def _refused(actions: Actions, epoch: int) -> None:
    """Waits until calls of the epoch are refused, by calls that have no effect."""
    async with asyncio.timeout(10):
        while True:
            try:
                await actions.undo("hold", f"other-{epoch}", epoch=epoch)
            except grpc.aio.AioRpcError as e:
                if e.code() is grpc.StatusCode.FAILED_PRECONDITION:
                    return
                raise


async def test_a_do_whose_caller_went_away_runs_to_its_end(store: Store) -> None:
    gate = Gate(store)
    async with serving(gate.server) as actions:
        gone = actions.do("hold")
        waiting = asyncio.ensure_future(gone)
        await eventually(lambda: gate.entered == 1)
        gone.cancel()
        await asyncio.wait([waiting])
        for _ in range(3):  # what is sent later on the same connection arrives later: the server knows that the caller went away
            await actions.stub.Describe(action_server_pb2.DescribeRequest())
        again = asyncio.ensure_future(actions.do("hold"))
        gate.open.set()
        assert (await again).output.data == b"1"
    assert gate.entered == 1


async def test_calls_beyond_the_bound_are_refused_at_once(store: Store) -> None:
    gate = Gate(store, max_concurrency=2)
    async with serving(gate.server) as actions:
        calls = [asyncio.ensure_future(actions.do("hold", f"k{n}")) for n in range(2)]
        await eventually(lambda: gate.entered == 2)
        code, text = await status_of(actions.do("hold", "k3"))
        assert (code, text) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            'The action server "gate" has 2 calls in hand and takes no more.',
        )
        gate.open.set()
        await asyncio.gather(*calls)
        await actions.do("hold", "k3")
    assert gate.entered == 3


async def test_values_that_are_no_json_leave_the_outcome_unknown(store: Store) -> None:
    server = ActionServer("odd", store=store, max_output_bytes=10)
    values: list[object] = [object(), float("nan"), b"x" * 11, Payload("text/plain", b"ok")]

    @server.action("odd", undo=None)
    async def odd(call: Call) -> object:
        return values.pop(0)

    async with serving(server) as actions:
        assert await status_of(actions.do("odd")) == (
            grpc.StatusCode.INTERNAL,
            "TypeError: Object of type object is not JSON serializable",
        )
        assert (await status_of(actions.do("odd")))[1].startswith("ValueError: Out of range float")
        assert (await status_of(actions.do("odd")))[1] == "ValueError: the output has 11 bytes; at most 10 are allowed"
        answer = await actions.do("odd")
        assert (answer.output.content_type, answer.output.data) == ("text/plain", b"ok")
        assert not (await actions.undo("odd")).HasField("failure")


async def test_a_store_that_cannot_be_written_leaves_the_outcome_unknown(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "marks.db")
    inventory = Inventory(store)
    async with serving(inventory.server) as actions:
        with sqlite3.connect(tmp_path / "marks.db") as breaker:
            breaker.execute("ALTER TABLE sec_calls RENAME TO hidden")
        code, text = await status_of(actions.do("take"))
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "cannot be written: no such table: sec_calls" in text
        with breaker:
            breaker.execute("ALTER TABLE hidden RENAME TO sec_calls")
        breaker.close()
        await actions.do("take")
    assert len(inventory.dos) == 1
