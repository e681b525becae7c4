"""What is scripted goes wrong, and what the SEC nodes and the kit make of it is what they make of it in a cluster."""

import asyncio
from collections.abc import Callable, Iterator

import pytest
from sec_client import SagaState
from sec_client.kit import ActionServer, Call, MemoryStore
from sec_testing import (
    EVERY,
    Away,
    Crash,
    Delay,
    Die,
    Fail,
    Fault,
    LoseAnswer,
    LoseCall,
    Repeat,
    SagaRun,
    SagaTester,
    Straggle,
    told,
)
from shop_support import Shop, chain, sqlite_server

Run = Callable[..., SagaRun]


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def run(shop: Shop) -> Iterator[Run]:
    """Runs a chain of nodes once."""
    with SagaTester(shop.server()) as tester:

        def once(*faults: Fault | Crash, nodes: tuple[str, ...] = ("a", "b"), refuse: str = "") -> SagaRun:
            return tester.run(chain(*nodes), {"refuse": refuse}, *faults)

        yield once


def heard(run: SagaRun, node: str, *, undo: bool = False) -> list[tuple[list[str], str]]:
    """Of each call of a node what the action server answered to each delivery, and what the SEC node heard."""
    return [(made.deliveries, made.answer) for made in run.calls_of(node, undo=undo)]


def test_a_call_fails_and_its_handler_is_not_called(run: Run, shop: Shop) -> None:
    found = run(Fail("b", message="No seat.", code="no_seat"))

    assert found.undone
    assert [(e.message, e.code) for e in found.errors] == [("No seat.", "no_seat")]
    assert shop.handled == ["a", "undo a"]


def test_the_second_call_of_an_action_fails(run: Run) -> None:
    found = run(Fail(action="take", call=2), nodes=("a", "b", "c"))

    assert found.undone
    assert found.order == ["a", "b", "undo a"]


def test_a_call_that_took_effect_cannot_fail_any_more(run: Run, shop: Shop) -> None:
    found = run(LoseAnswer("a"), Fail("a", call=2))

    assert found.done
    assert heard(found, "a") == [(["output"], "nothing"), (["output"], "output")]
    assert shop.left() == {"a": 1, "b": 1}


def test_a_lost_answer_is_asked_for_again(run: Run, shop: Shop) -> None:
    found = run(LoseAnswer("a"))

    assert found.done
    assert heard(found, "a") == [(["output"], "nothing"), (["output"], "output")]
    assert shop.handled == ["a", "b"]


def test_an_outcome_that_stays_unknown_is_undone(run: Run, shop: Shop) -> None:
    found = run(LoseAnswer("b", call=EVERY))

    assert found.undone
    assert [len(found.calls_of("b")), len(found.calls_of("b", undo=True))] == [3, 1]
    assert shop.handled == ["a", "b", "undo b", "undo a"]
    assert shop.left() == {}


def test_a_call_that_never_arrives_is_undone_without_its_handler(run: Run, shop: Shop) -> None:
    found = run(LoseCall("b", call=EVERY))

    assert found.undone
    assert heard(found, "b") == [([], "nothing")] * 3
    assert shop.handled == ["a", "undo a"]


def test_an_action_server_that_dies_behind_the_effect_is_called_again(run: Run, shop: Shop) -> None:
    found = run(Die("a"), Die("a", undo=True), refuse="b")

    assert found.undone
    assert heard(found, "a") == [(["UNAVAILABLE"], "UNAVAILABLE"), (["output"], "output")]
    assert shop.handled == ["a", "a", "b", "undo a", "undo a"]


def test_an_action_server_that_dies_before_the_effect_leaves_nothing_to_undo(run: Run, shop: Shop) -> None:
    found = run(Die("a", before=True, call=EVERY))

    assert found.undone
    assert shop.handled == ["undo a"]


def test_effects_in_the_sqlite_file_are_rolled_back_when_the_server_dies() -> None:
    with SagaTester(sqlite_server()) as sagas:
        found = sagas.run(chain("a"), Die("a"))

        assert found.done
        assert len(found.calls) == 2
        assert sagas.query("rooms", "SELECT node FROM rooms") == [("a",)]


def test_a_call_that_is_delivered_twice_at_once_has_its_effect_once(run: Run, shop: Shop) -> None:
    shop.takes_s = 1.0

    found = run(Repeat("a"))

    assert found.done
    assert heard(found, "a") == [(["output", "output"], "output")]
    assert shop.handled == ["a", "b"]


def test_a_call_that_is_delivered_again_after_the_undo_is_a_failure(run: Run, shop: Shop) -> None:
    found = run(Repeat("a", after_s=60), Fail("b"))

    assert found.undone
    assert heard(found, "a") == [(["output", "failure"], "output")]
    assert shop.left() == {}


def test_a_copy_that_arrives_when_all_is_over(run: Run, shop: Shop) -> None:
    found = run(Straggle("a"), LoseCall("a", call=EVERY))

    assert found.undone
    assert heard(found, "a")[0] == (["failure"], "nothing")
    assert shop.handled == []


def test_an_undo_is_delivered_again_and_again(run: Run, shop: Shop) -> None:
    found = run(LoseAnswer("a", undo=True), Repeat("a", undo=True, call=2), Straggle("a", undo=True), refuse="b")

    assert found.undone
    assert heard(found, "a", undo=True) == [(["done", "done"], "nothing"), (["done", "done"], "done")]
    assert shop.handled == ["a", "b", "undo a"]


def test_a_call_that_is_late_is_overtaken_by_the_next(run: Run, shop: Shop) -> None:
    found = run(Delay("a", by_s=15))

    assert found.done
    assert heard(found, "a") == [(["output"], "nothing"), (["output"], "output")]
    assert found.calls[1].at_s > 10
    assert shop.handled == ["a", "b"]


def test_a_call_of_a_former_owner_is_refused(run: Run, shop: Shop) -> None:
    found = run(Delay("a", by_s=5), Crash(record="started", node="a"), nodes=("a",))
    assert found.done
    assert [made.epoch for made in found.calls] == [found.view.epoch]  # it died before it called

    shop.clear()
    with SagaTester(shop.server()) as sagas:
        late = sagas.submit(chain("a"), None, Delay("a", by_s=5))
        late.until(lambda run: bool(run.calls)).crash_owner().wait()

        assert late.done
        assert heard(late, "a") == [(["FAILED_PRECONDITION"], ""), (["output"], "output")]
        assert shop.handled == ["a"]


def test_an_action_server_that_is_away_is_waited_for(run: Run) -> None:
    found = run(Away("b", for_s=3600))

    assert found.done
    first, second = found.calls_of("b")
    assert (first.deliveries, first.answer) == ([], "nothing")
    assert second.at_s - first.at_s == pytest.approx(3600, abs=1)


def test_an_action_server_is_sent_away(shop: Shop) -> None:
    with SagaTester(shop.server()) as sagas:
        found = sagas.away("shop", 100).run(chain("a"))

        assert found.done
        assert found.calls[0].at_s >= 100


def test_an_undo_that_fails_for_good(run: Run, shop: Shop) -> None:
    found = run(Fail("a", undo=True), refuse="b")

    assert found.state is SagaState.STUCK
    assert shop.left() == {"a": 1}


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("write", range(1, 4))
def test_the_owner_dies_at_each_write_and_another_takes_over(run: Run, shop: Shop, write: int, before: bool) -> None:
    found = run(Crash(write, before=before))

    assert found.done
    assert found.missed == ()
    assert shop.handled == ["a", "b"]
    writers = list(dict.fromkeys(record.writer for record in found.log))
    # When it dies before the first write, it was another that took the saga in; behind the last one there is nothing left to take over.
    assert len(writers) == (1 if (write, before) in ((1, True), (3, False)) else 2)
    assert writers[-1] == ("sec-1" if (write, before) == (3, False) else "sec-2")


def test_the_owner_dies_at_a_record(shop: Shop) -> None:
    with SagaTester(shop.server()) as sagas:
        found = sagas.run(chain("a", "b"), None, Crash(record="started", node="b"))

        assert found.done
        assert [made.sec_node for made in found.calls] == ["sec-1", "sec-2"]
        taken = next(record for record in found.log if record.kind == "owner_changed" and record.sequence > 3)
        assert taken.writer == "sec-2"


def test_owners_die_one_after_the_other(run: Run, shop: Shop) -> None:
    found = run(Crash(1), Crash(2), Crash(3), Crash(4), nodes=("a", "b", "c"))

    assert found.done
    assert found.missed == ()
    assert shop.handled == ["a", "b", "c"]


def test_one_node_alone_comes_back_and_goes_on(shop: Shop) -> None:
    with SagaTester(shop.server(), nodes=1) as sagas:
        found = sagas.run(chain("a", "b"), None, Crash(2))

        assert found.done
        assert {record.writer for record in found.log} == {"sec-1"}


def test_an_owner_dies_while_its_call_is_under_way() -> None:
    server = ActionServer("slow", store=MemoryStore())
    begun: list[int] = []

    @server.action(undo=None)
    async def take(call: Call) -> None:
        begun.append(call.epoch)
        await asyncio.sleep(3)

    with SagaTester(server) as sagas:
        found = sagas.submit(chain("a"))
        found.until(lambda run: bool(begun)).crash_owner().wait()

        assert found.done
        assert len(begun) == 1  # what has begun runs to its end, and the new owner gets its answer
        assert [made.answer for made in found.calls] == ["", "output"]
        with pytest.raises(ValueError, match="No SEC node owns saga"):
            found.crash_owner()


def test_what_has_not_come_to_pass_is_told(run: Run) -> None:
    found = run(Fail("a"), LoseAnswer("b"), Crash(99))

    assert found.undone
    assert found.missed == (LoseAnswer("b"), Crash(99))
    assert "did not come to pass: the owner dies after write 99" in str(found)


def test_faults_are_sentences() -> None:
    faults = (
        Fail("a"),
        LoseAnswer("a", call=EVERY, undo=True),
        LoseCall(action="take", call=3),
        Die("a"),
        Die("a", before=True),
        Delay("a"),
        Repeat("a"),
        Repeat("a", after_s=30),
        Straggle("a", undo=True),
        Away("a"),
        Crash(3, before=True),
        Crash(record="started", node="a"),
    )

    assert [str(fault) for fault in faults] == [
        "the do of a fails",
        "the answer to each undo of a is lost",
        "do 3 of the action take never arrives",
        "the action server dies after the do of a",
        "the action server dies before the do of a",
        "the do of a arrives 5 s late",
        "the do of a is delivered twice at once",
        "the do of a is delivered again 30 s later",
        "a copy of the undo of a arrives when all is over",
        "the action server goes away at the do of a, for 60 s",
        "the owner dies before write 3",
        'the owner dies after the record "started" of a',
    ]
    assert told(faults[:2]) == "the do of a fails and the answer to each undo of a is lost"
    assert told(()) == "nothing goes wrong"


def test_a_run_tells_all_of_it(run: Run) -> None:
    story = str(run(LoseAnswer("a"), Fail("b")))

    assert story.splitlines()[0] == 'saga "chain-1" is undone; the answer to the do of a is lost and the do of b fails'
    assert "do   a (take), attempt 1, from sec-1: output; heard: nothing  [the answer to the do of a is lost]" in story
    assert "undo a (take), attempt 1, from sec-1: done\n" in story
    assert '  error: node "b": It does not work, says the test.' in story
