"""`SagaTester`: sagas that are run in one process, their calls, time, and what operators do."""

import asyncio
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sec_client import InvalidDefinition, NodeState, RetryPolicy, Saga, SagaState, WrongState, action, signal, timer
from sec_client.kit import ActionFailed, ActionServer, Call, Incoming, MemoryStore
from sec_model.commands import NodePath, SetDeadline
from sec_testing import EVERY, Delay, Fail, LoseAnswer, NotSettled, SagaTester
from shop_support import FEW, Shop, chain, sqlite_server

PLAIN_AND_ASYNC = pytest.mark.parametrize("plain", [False, True], ids=["async handlers", "plain handlers"])


@PLAIN_AND_ASYNC
def test_a_saga_runs_to_its_end(plain: bool) -> None:
    shop = Shop(plain=plain)
    saga = Saga("pair").append_parallel(action("a", "take"), action("b", "take")).append(action("c", "take", reads=["a"]))

    with SagaTester(shop.server()) as sagas:
        run = sagas.run(saga, {"guest": "Ada"})

        assert run.done
        assert run.output == {"node": "c", "a": {"node": "a"}}
        assert run.errors == ()
        assert run.order == ["a", "b", "c"]
        assert [(m.action, m.undo, m.attempt, m.deliveries, m.answer) for m in run.calls] == [
            ("take", False, 1, ["output"], "output")
        ] * 3
        assert len({m.key for m in run.calls}) == 3
        assert run["c"].state is NodeState.DONE
    assert shop.left() == {"a": 1, "b": 1, "c": 1}


@PLAIN_AND_ASYNC
def test_a_saga_whose_handler_fails_is_undone(plain: bool) -> None:
    shop = Shop(plain=plain)

    with SagaTester(shop.server()) as sagas:
        run = sagas.run(chain("a", "b", "c"), {"refuse": "c"})

        assert run.undone
        assert run.order == ["a", "b", "c", "undo b", "undo a"]
        assert [(e.node, e.code) for e in run.errors] == [("c", "refused")]
        assert [made.key for made in run.calls_of("a")] == [made.key for made in run.calls_of("a", undo=True)]
    assert shop.left() == {}


def test_nothing_waits_in_real_time() -> None:
    saga = Saga("slow").append(action("a", "take")).append(timer("pause", timedelta(days=2))).append(action("b", "take"))
    began = time.monotonic()

    with SagaTester(Shop(takes_s=20.0).server()) as sagas:
        before = sagas.now
        run = sagas.run(saga)

        assert run.done
        assert timedelta(days=2, seconds=40) < sagas.now - before < timedelta(days=2, seconds=45)
    assert time.monotonic() - began < 20.0


def test_the_clock_begins_where_it_is_told_and_is_advanced() -> None:
    begin = datetime(2031, 5, 1, tzinfo=UTC)
    saga = Saga("dated").append(timer("until", datetime(2031, 5, 3, tzinfo=UTC))).append(action("a", "take"))

    with SagaTester(Shop().server(), start=begin) as sagas:
        run = sagas.submit(saga)
        sagas.advance(timedelta(days=1))
        assert run["until"].state is NodeState.WAITING
        run.wait()

        assert run.done
        assert begin + timedelta(days=2) <= sagas.now < begin + timedelta(days=2, seconds=1)
        assert run.log[0].time is not None
        assert begin <= run.log[0].time < begin + timedelta(seconds=1)
        created = run.view.summary.created
        assert created is not None
        assert begin <= created < begin + timedelta(seconds=1)


def test_deadlines_go_by_the_virtual_clock() -> None:
    with SagaTester(Shop().server(), start=datetime(2031, 5, 1, tzinfo=UTC)) as sagas:
        run = sagas.run(approved())
        sagas.advance(timedelta(hours=5))
        run.command(SetDeadline(NodePath("approval"), after_s=60))

        due = run["approval"].due
        assert due is not None
        assert timedelta(seconds=59) < due - sagas.now <= timedelta(seconds=60)
        sagas.advance(58)
        assert run.state is SagaState.RUNNING
        sagas.advance(3)
        assert run.undone

        whole = sagas.run(approved(), deadline=30)
        sagas.advance(31)
        assert whole.undone


def test_calls_tell_the_time_by_the_virtual_clock() -> None:
    told: dict[str, Any] = {}
    server = ActionServer("slow", store=MemoryStore())

    @server.action(undo=None)
    async def think(call: Call) -> None:
        told["left"] = call.remaining_s()
        await asyncio.sleep(4)
        told["left later"] = call.remaining_s()
        told["deadline"] = call.deadline

    with SagaTester(server, start=datetime(2031, 5, 1, tzinfo=UTC)) as sagas:
        sagas.run(Saga("thought").append(action("a", "think", retry=FEW)))

    assert told["left"] == pytest.approx(10, abs=0.01)
    assert told["left later"] == pytest.approx(6, abs=0.01)
    assert datetime(2031, 5, 1, 0, 0, 9, tzinfo=UTC) < told["deadline"] < datetime(2031, 5, 1, 0, 0, 11, tzinfo=UTC)


def test_retries_back_off_in_virtual_time() -> None:
    with SagaTester(Shop().server()) as sagas:
        run = sagas.run(chain("a"), LoseAnswer("a", call=EVERY))

        first, second, third = run.calls_of("a")
        assert run.undone
        assert second.at_s - first.at_s > 10
        assert third.at_s - second.at_s > 10


async def test_it_is_used_the_same_way_in_an_async_test() -> None:
    shop = Shop(plain=True)

    with SagaTester(shop.server()) as sagas:
        assert sagas.run(chain("a", "b")).done
        await asyncio.sleep(0)
        assert sagas.run(chain("c"), {"refuse": "c"}).undone
    assert shop.left() == {"a": 1, "b": 1}


def test_the_same_seed_gives_the_same_run() -> None:
    def calls() -> list[tuple[object, ...]]:
        with SagaTester(Shop(plain=True).server(), seed=7) as sagas:
            saga = Saga("wide").append_parallel(*(action(f"n{i}", "take", retry=FEW) for i in range(8))).append(action("z", "take"))
            run = sagas.run(saga, None, LoseAnswer("n3"), Delay("n5", by_s=3), Fail("z"))
            return [(m.node, m.undo, m.attempt, m.at_s, m.sec_node, tuple(m.deliveries)) for m in run.calls]

    assert calls() == calls()


def test_effects_in_the_sqlite_file_are_in_a_file_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    server = sqlite_server()

    for _ in range(2):
        with SagaTester(server) as sagas:
            assert sagas.query("rooms", "SELECT node FROM rooms") == []
            assert sagas.run(chain("a", "b")).done
            assert sagas.query("rooms", "SELECT node FROM rooms") == [("a",), ("b",)]
            assert sagas.query("rooms", "SELECT node FROM rooms WHERE node > ?", "a") == [("b",)]
            with closing(sagas.db("rooms")) as db, pytest.raises(sqlite3.OperationalError, match="no such column"):
                db.execute("SELECT colour FROM rooms")
    assert list(tmp_path.iterdir()) == []


def test_the_stores_are_the_users_to_choose() -> None:
    made: list[MemoryStore] = []

    class Own(MemoryStore):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    with SagaTester(Shop().server(), stores={"shop": Own}) as sagas:
        assert sagas.run(chain("a")).done
        with pytest.raises(ValueError, match='"shop" has no SQLite file: its store is a Own'):
            sagas.db("shop")
    assert len(made) == 1


def test_middleware_sees_each_delivery() -> None:
    seen: list[str] = []

    async def around(incoming: Incoming, deliver: Any) -> Any:
        seen.append(incoming.message.call.node)
        return await deliver()

    server = ActionServer("w", store=MemoryStore(), middleware=around)
    server.action("take", undo=None)(lambda call: None)

    with SagaTester(server) as sagas:
        assert sagas.run(chain("a", "b")).done
    assert seen == ["a", "b"]


def test_an_action_under_way_hears_that_nobody_wants_it() -> None:
    server = ActionServer("slow", store=MemoryStore())
    heard: list[str] = []

    @server.action(undo=None)
    async def think(call: Call) -> None:
        await call.wait_cancelled()
        heard.append(call.node)
        call.raise_if_cancelled()

    @server.action(undo=None)
    async def refuse(call: Call) -> None:
        await asyncio.sleep(1)
        raise ActionFailed("No.")

    saga = Saga("both").append_parallel(action("long", "think"), action("short", "refuse")).append(action("end", "refuse"))
    with SagaTester(server) as sagas:
        run = sagas.run(saga)

        assert run.undone
        assert {(e.node, e.code) for e in run.errors} == {("long", "cancelled"), ("short", "")}
    assert heard == ["long"]


# operators, and others from outside


def approved() -> Saga:
    saga = Saga("approved").append(action("stock", "take")).append(signal("approval", deadline=timedelta(days=1)))
    return saga.append(action("parcel", "take", reads=["approval"]))


def test_a_saga_rests_when_it_waits_for_a_signal() -> None:
    with SagaTester(Shop().server()) as sagas:
        run = sagas.run(approved())
        assert (run.state, run["approval"].state) == (SagaState.RUNNING, NodeState.WAITING)

        run.signal("approval", {"by": "Ada"}).wait()

        assert run.done
        assert run.output == {"node": "parcel", "approval": {"by": "Ada"}}


def test_signals_may_be_sent_in_advance() -> None:
    with SagaTester(Shop().server()) as sagas:
        run = sagas.run(approved(), signals={"approval": "yes"})

        assert run.output == {"node": "parcel", "approval": "yes"}


def test_a_signal_that_does_not_come_by_its_deadline() -> None:
    shop = Shop()
    with SagaTester(shop.server()) as sagas:
        run = sagas.run(approved())
        sagas.advance(timedelta(hours=23))
        assert not run.undone
        sagas.advance(timedelta(hours=2))

        assert run.undone
        with pytest.raises(WrongState, match="it takes no commands any more"):
            run.signal("approval")
    assert shop.left() == {}


def test_pause_step_resume_and_abort() -> None:
    shop = Shop()
    with SagaTester(shop.server()) as sagas:
        run = sagas.submit(chain("a", "b", "c"), start=False).pause("not yet").start().wait()
        assert (run.view.summary.pause_reason, run.order) == ("not yet", [])

        run.step().wait()
        assert run.order == ["a"]

        run.resume().wait()
        assert run.done

        other = sagas.submit(chain("a", "b"), start=False).pause().start().step().wait().abort("enough").wait()
        assert other.undone
        assert other.order == ["a", "undo a"]
        with pytest.raises(WrongState):
            run.abort()


@pytest.mark.parametrize("how", ["retry", "skip", "by hand"])
def test_a_stuck_saga_waits_for_an_operator(how: str) -> None:
    shop = Shop()
    with SagaTester(shop.server()) as sagas:
        run = sagas.run(chain("a", "b", "c"), Fail("c"), Fail("b", undo=True, message="It is gone.", code="gone"))
        assert run.state is SagaState.STUCK
        assert [(e.node, e.message, e.code) for e in run.errors if e.node == "b"] == [("b", "It is gone.", "gone")]
        assert shop.left() == {"a": 1, "b": 1}

        match how:
            case "retry":
                run.retry_undo("b")
            case "skip":
                run.skip_undo("b", "Nobody minds.")
            case _:
                run.mark_undone("b")
        run.wait()

        assert run.undone
        assert shop.left() == ({} if how == "retry" else {"b": 1})


def test_it_is_looked_at_while_it_runs() -> None:
    with SagaTester(Shop(takes_s=5.0).server()) as sagas:
        run = sagas.submit(chain("a", "b"))
        run.until(lambda run: run["b"].state is NodeState.WORKING)

        assert run["a"].state is NodeState.DONE
        assert run.order == ["a", "b"]
        with pytest.raises(NotSettled, match="What was waited for does not come, within 2 s"):
            run.until(lambda run: run.done, within=2.0)
        assert run.wait().done


# mistakes


def test_a_saga_that_goes_on_for_too_long_says_where_it_stands() -> None:
    saga = Saga("long").append(action("a", "take")).append(timer("b", 100.0))

    with SagaTester(Shop().server()) as sagas:
        run = sagas.submit(saga)
        with pytest.raises(NotSettled, match="is running after 50 s of virtual time, and goes on: a is done, b is waiting"):
            run.wait(within=50)
        assert run.wait().done


def test_an_action_that_nobody_offers_is_refused_at_once() -> None:
    with (
        SagaTester(Shop().server()) as sagas,
        pytest.raises(ValueError, match='"s-1" calls fly, which no action server of this test offers'),
    ):
        sagas.run(Saga("s").append(action("a", "fly")))


def test_a_saga_that_does_not_fit_its_actions_is_refused() -> None:
    server = ActionServer("typed", store=MemoryStore())

    @server.action(undo=None)
    def greet(call: Call, name: str) -> str:
        return name

    with SagaTester(server) as sagas, pytest.raises(InvalidDefinition, match="does not fit the actions"):
        sagas.run(Saga("greeting").append(action("a", "greet")))


def test_names_that_do_not_exist_are_refused() -> None:
    with SagaTester(Shop().server()) as sagas:
        with pytest.raises(ValueError, match='has no node "x", of which it was said that the do of x fails'):
            sagas.run(chain("a"), Fail("x"))
        with pytest.raises(ValueError, match='does not call the action "fly"'):
            sagas.run(chain("a"), Fail(action="fly"))
        with pytest.raises(ValueError, match='There is no action server "y" in this test; there are: "shop"'):
            sagas.away("y", 1.0)
        with pytest.raises(ValueError, match="name one of the two"):
            Fail()
        sagas.run(chain("a"), saga_id="one")
        with pytest.raises(ValueError, match='"one" has been submitted already'):
            sagas.run(chain("a"), saga_id="one")
        with pytest.raises(ValueError, match='two action servers called "shop"'):
            sagas.serve(Shop().server())


def test_more_action_servers_may_come_later() -> None:
    one, two = Shop(), Shop()
    server = ActionServer("late", store=MemoryStore())
    server.action("fly", undo=None)(lambda call: "flown")

    with SagaTester(one.server()) as sagas:
        assert sagas.run(chain("a")).done
        sagas.serve(server)
        assert sagas.run(Saga("s").append(action("a", "fly"))).output == "flown"
    assert two.left() == {}


def test_an_action_server_that_cannot_be_called_is_refused() -> None:
    server = ActionServer("half", store=MemoryStore())
    server.action("take")(lambda call: None)

    with pytest.raises(ValueError, match="It is not declared how these actions are undone"), SagaTester(server) as sagas:
        sagas.run(chain("a"))


@pytest.mark.parametrize(("reports", "attempts"), [(True, 1), (False, 2)], ids=["reports", "silent"])
def test_a_heartbeat_timeout_is_kept_by_reports(reports: bool, attempts: int) -> None:
    server = ActionServer("copier", store=MemoryStore())

    @server.action(undo=None)
    async def copy(call: Call) -> str:
        for minute in range(60):
            if reports:
                await call.report(minute / 60)
            await asyncio.sleep(60)
        return "copied"

    patient = RetryPolicy(max_attempts=attempts, attempt_timeout_s=86_400, heartbeat_timeout_s=90, initial_backoff_s=1)
    with SagaTester(server) as sagas:
        run = sagas.run(Saga("backup").append(action("disk", "copy", retry=patient, undo_retry=patient)))

        assert run.done is reports
        assert len(run.calls_of("disk")) == attempts
        assert {error.code for error in run.errors} == (set() if reports else {"no_heartbeat"})


def test_one_that_was_never_closed_ends_with_its_program_without_a_word() -> None:
    program = """
from sec_client import Saga, action
from sec_client.kit import ActionServer
from sec_testing import SagaTester

server = ActionServer("s")
server.action("act", undo=None)(lambda call: "done")
print(SagaTester(server).run(Saga("s").append(action("a", "act"))).output)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


def test_sagas_call_the_versions_that_they_ask_for() -> None:
    """One server with two versions of an action, and a fault of whichever is called."""
    server = ActionServer("prices", store=MemoryStore())

    @server.action("price@1.0", undo=None)
    def former(call: Call) -> str:
        return "former"

    @server.action("price@1.1", undo=None)
    def latter(call: Call) -> str:
        return "latter"

    with SagaTester(server) as sagas:
        for asked, offer, output in (
            ("price", "price@1.1", "latter"),
            ("price@1", "price@1.1", "latter"),
            ("price@1.0", "price@1.0", "former"),
            ("price@=1.0", "price@1.0", "former"),
        ):
            run = sagas.run(Saga("s").append(action("a", asked)), LoseAnswer(action=asked))
            assert run.output == output
            assert [made.action for made in run.calls] == [offer, offer]
        with pytest.raises(ValueError, match="calls price@2, which no action server of this test offers"):
            sagas.run(Saga("s").append(action("a", "price@2")))
