"""A run for each fault: which there are, and that broken action servers are caught."""

from collections import Counter
from typing import Any

import pytest
from sec_client import RetryPolicy, Saga, SagaState, UndoPolicy, action
from sec_client.kit import ActionFailed, ActionServer, Call, MemoryStore
from sec_client.kit.rules import Delivery, Entry, Run, Verdict
from sec_client.kit.store import Effects
from sec_testing import EVERY, Crash, Fail, LoseAnswer, LoseCall, Repeat, SagaTester, Straggle, told
from shop_support import FEW, Shop, chain, sqlite_server


class Forgetful(MemoryStore):
    """Knows nothing of any key: each delivery calls the handler."""

    async def begin(self, delivery: Delivery) -> Verdict:
        return Run(first=True)

    async def finish(self, delivery: Delivery, entry: Entry, effects: Effects | None) -> None:
        pass


class NoTombstones(MemoryStore):
    """Forgets a key when it is undone, so that a late do takes effect again."""

    async def finish(self, delivery: Delivery, entry: Entry, effects: Effects | None) -> None:
        if delivery.undo:
            del self._entries[delivery.key]
        else:
            await super().finish(delivery, entry, effects)


@pytest.mark.parametrize("plain", [False, True], ids=["async handlers", "plain handlers"])
def test_a_server_that_keeps_its_obligations_leaves_every_effect_or_none(plain: bool) -> None:
    shop = Shop(plain=plain)
    saga = Saga("pair").append_parallel(action("a", "take", retry=FEW), action("b", "take", retry=FEW)).append(action("c", "take"))

    count = SagaTester(shop.server()).assert_all_or_none(saga, before=shop.clear, world=shop.left)

    assert count > 50


def test_effects_in_the_sqlite_file_are_all_there_or_none() -> None:
    def rooms(sagas: SagaTester) -> Any:
        return sagas.query("rooms", "SELECT node FROM rooms")

    assert SagaTester(sqlite_server()).assert_all_or_none(chain("a", "b"), world=rooms) > 30


def test_an_undo_that_leaves_something_is_caught() -> None:
    shop = Shop(leaves=True)

    with pytest.raises(AssertionError) as caught:
        SagaTester(shop.server()).assert_all_or_none(chain("a", "b"), before=shop.clear, world=shop.left)

    report = str(caught.value)
    assert report.startswith("Neither every effect nor none, after ")
    assert "When the do of b fails, the saga is undone, and the world has {'a': 1}, where {} was before." in report
    assert "undo a (take), attempt 1" in report  # what happened is told with it
    assert "When the owner dies after write 1, " not in report  # then it goes on to its end, which leaves all


def test_a_do_that_is_not_idempotent_is_caught() -> None:
    shop = Shop(counts=True)

    with pytest.raises(AssertionError) as caught:
        SagaTester(shop.server()).assert_all_or_none(chain("a", "b"), before=shop.clear, world=shop.left)

    report = str(caught.value)
    because = "the saga is done, and the world has {'a': 2, 'b': 1}, where {'a': 1, 'b': 1} is all."
    assert f"When the action server dies after the do of a, {because}" in report
    assert "after 2 of " in report  # the store of the kit sees to all other repetitions


def test_an_undo_that_needs_its_do_is_caught() -> None:
    shop = Shop()
    server = ActionServer("strict", store=MemoryStore())

    @server.action()
    def take(call: Call) -> None:
        shop.effects[call.node] = 1

    @take.undo
    def give_back(call: Call) -> None:
        if not shop.effects[call.node]:
            raise ActionFailed("There is nothing to give back.")
        shop.effects[call.node] = 0

    with pytest.raises(AssertionError) as caught:
        SagaTester(server).assert_all_or_none(chain("a", "b"), before=shop.clear, world=shop.left)

    report = str(caught.value)
    assert "When the action server dies before each do of a, the saga is neither done nor undone: it is stuck." in report
    assert (
        "When the do of b fails and the action server dies after the undo of a, the saga is neither done nor undone: it is stuck"
        in report
    )


def test_a_store_that_forgets_is_caught() -> None:
    shop = Shop(counts=True)

    with pytest.raises(AssertionError) as caught:
        SagaTester(shop.server(), stores={"shop": Forgetful}).assert_all_or_none(chain("a"), before=shop.clear, world=shop.left)

    report = str(caught.value)
    assert "When the answer to the do of a is lost, the saga is done, and the world has {'a': 2}, where {'a': 1} is all." in report
    assert "When the do of a is delivered twice at once, the saga is done, and the world has {'a': 2}" in report


def test_a_late_do_that_takes_effect_after_its_undo_is_caught() -> None:
    shop = Shop()

    with pytest.raises(AssertionError) as caught:
        SagaTester(shop.server(), stores={"shop": NoTombstones}).assert_all_or_none(
            chain("a", "b"), before=shop.clear, world=shop.left
        )

    because = (
        "When the do of b fails and a copy of the do of a arrives when all is over, the saga is undone, and the world has {'a': 1}"
    )
    assert because in str(caught.value)


def test_a_saga_that_stays_stuck_is_caught() -> None:
    shop = Shop()

    with pytest.raises(
        AssertionError, match="When the do of a fails and the do of b fails, the saga is neither done nor undone: it is stuck"
    ):
        SagaTester(shop.server()).assert_all_or_none(
            chain("z", "a", "b"),
            before=shop.clear,
            world=shop.left,
            having=[Fail("z", undo=True)],
            points=[(Fail("a"), Fail("b"))],
        )


def test_a_saga_that_is_undone_when_nothing_goes_wrong() -> None:
    shop = Shop()

    count = SagaTester(shop.server()).assert_all_or_none(chain("a", "b"), {"refuse": "b"}, before=shop.clear, world=shop.left)

    assert count > 30


def test_the_points_are_those_of_the_saga() -> None:
    shop = Shop()

    points = SagaTester(shop.server()).fault_points(chain("a", "b"), before=shop.clear)

    assert points[0] == ()
    assert len(points) == len(set(points))
    for expected in (
        (Fail("a"),),
        (LoseAnswer("b"),),
        (LoseAnswer("b", call=EVERY),),
        (LoseCall("a", call=EVERY), Straggle("a")),
        (Repeat("a"),),
        (Crash(1, before=True),),
        (Crash(3),),
        (Fail("b"), LoseAnswer("a", undo=True)),
        (Fail("b"), Straggle("a")),
        (Fail("b"), Crash(4)),
    ):
        assert expected in points
    assert (Crash(4),) not in points
    assert not any("undo of b" in told(point) for point in points)  # what has failed is not undone


def test_behind_a_point_of_no_return_no_call_is_lost_for_ever() -> None:
    shop = Shop()
    retry = RetryPolicy(max_attempts=2, attempt_timeout_s=5)
    saga = Saga("pay").append(action("a", "take", retry=retry)).append(action("b", "take", undo=UndoPolicy.POINT_OF_NO_RETURN))
    saga.append(action("c", "take"))
    tester = SagaTester(shop.server())

    points = tester.fault_points(saga, before=shop.clear)

    assert (LoseCall("a", call=EVERY),) in points
    assert (LoseCall("c", call=EVERY),) not in points
    assert (LoseCall("c"),) in points
    assert (Fail("b"), LoseCall("a", undo=True)) in points  # until it has taken effect there is a way back
    assert tester.assert_all_or_none(saga, before=shop.clear, world=shop.left) == len(points)


def test_each_fault_gives_runs_to_look_at() -> None:
    shop = Shop()
    states: Counter[SagaState] = Counter()

    for run in SagaTester(shop.server()).each_fault(chain("a", "b"), before=shop.clear):
        states[run.state] += 1
        assert set(shop.left()) == ({"a", "b"} if run.done else set()), run

    assert set(states) == {SagaState.DONE, SagaState.UNDONE}


async def test_each_fault_in_an_async_test() -> None:
    shop = Shop()
    told_of = [
        told(run.faults)
        async for run in SagaTester(shop.server()).each_fault(chain("a"), before=shop.clear, points=[(), (Fail("a"),)])
    ]

    assert told_of == ["nothing goes wrong", "the do of a fails"]


def test_each_run_has_a_cluster_and_stores_of_its_own() -> None:
    server = sqlite_server()

    for run in SagaTester(server).each_fault(chain("a"), points=[(), (LoseAnswer("a"),)]):
        assert run.saga_id == "chain-1"
        assert run.tester.query("rooms", "SELECT node FROM rooms") == [("a",)]


def test_an_error_says_in_which_run_it_was() -> None:
    def points() -> list[tuple[Fail, ...]]:
        return [(), (Fail("nowhere"),)]

    with pytest.raises(ValueError, match='no node "nowhere"') as caught:
        list(SagaTester(Shop().server()).each_fault(chain("a"), points=points()))

    assert caught.value.__notes__ == ["That was in the run in which the do of nowhere fails."]


def test_what_differs_from_the_undisturbed_run_is_told_when_that_one_fails() -> None:
    seen: list[str] = []
    server = ActionServer("moody", store=MemoryStore())

    @server.action(undo=None)
    def take(call: Call) -> None:
        seen.append(call.node)
        if len(seen) == 1:
            raise ActionFailed("Not the first time.")

    with pytest.raises(AssertionError, match="the saga is done, which it is not when nothing goes wrong"):
        SagaTester(server).assert_all_or_none(chain("a"), world=lambda _: 0, points=[(), (LoseAnswer("a"),)])
