"""Tests of the trip, as its developers would write them: see docs/testing.md."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import trip_actions
from sec_client.kit import ActionServer
from sec_testing import EVERY, Away, Crash, LoseAnswer, SagaTester
from trip import trip

ADA = {"guest": "Ada", "price": 900}
BOOKED = [("car", "Ada"), ("flight", "Ada"), ("hotel", "Ada")]


@pytest.fixture
def action_servers() -> list[ActionServer]:
    return [trip_actions.server]


@pytest.fixture(autouse=True)
def bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a bank of our own: unlike the store of the action server it is not made anew by itself."""
    folder = tmp_path / "bank"
    monkeypatch.setattr(trip_actions, "bank", trip_actions.Bank(folder))
    return folder


def bookings(sagas: SagaTester) -> list[tuple[str, str]]:
    return sagas.query("travel", "SELECT what, guest FROM bookings")


def payments(folder: Path) -> int:
    return len(list(folder.glob("*.json")))


def test_a_trip_is_booked_and_paid(sagas: SagaTester, bank: Path) -> None:
    run = sagas.run(trip, ADA)

    assert run.output == "Ada paid 900 for: car for Ada, flight for Ada, hotel for Ada"
    assert bookings(sagas) == BOOKED
    assert payments(bank) == 1


def test_the_third_guest_gets_no_seat_and_keeps_nothing(sagas: SagaTester, bank: Path) -> None:
    for _ in range(trip_actions.SEATS):
        assert sagas.run(trip, ADA).done

    run = sagas.run(trip, {"guest": "Zoe", "price": 900})

    assert run.undone
    assert [error.code for error in run.errors] == ["no_seat"]
    assert "Zoe" not in {guest for _, guest in bookings(sagas)}
    assert payments(bank) == trip_actions.SEATS


def test_a_payment_of_which_nobody_hears_is_made_once(sagas: SagaTester, bank: Path) -> None:
    run = sagas.run(trip, ADA, LoseAnswer("payment"), Crash(record="started", node="payment"))

    assert run.done
    assert len({call.key for call in run.calls_of("payment")}) == 1
    assert payments(bank) == 1


def test_a_payment_that_is_in_doubt_is_paid_back(sagas: SagaTester, bank: Path) -> None:
    run = sagas.run(trip, ADA, LoseAnswer("payment", call=EVERY))

    assert run.undone
    assert (bookings(sagas), payments(bank)) == ([], 0)


def test_the_travel_server_may_be_away_for_an_hour(sagas: SagaTester) -> None:
    assert sagas.run(trip, ADA, Away("payment", for_s=3600)).done


def test_every_effect_or_none(sagas: SagaTester, bank: Path) -> None:
    def close_all_accounts() -> None:
        for file in bank.glob("*.json"):
            file.unlink()

    sagas.assert_all_or_none(trip, ADA, before=close_all_accounts, world=lambda sagas: (bookings(sagas), payments(bank)))
