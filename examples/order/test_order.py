"""Tests of the order, as its developers would write them: see docs/testing.md. It waits for people, and has a point of no return."""

from datetime import timedelta
from pathlib import Path

import order_actions
import pytest
import yaml
from sec_client.kit import ActionServer
from sec_model.document import definition_from_document
from sec_testing import Fail, SagaTester

order = definition_from_document(yaml.safe_load(Path(__file__).with_name("order.yaml").read_text()))
APPROVED = {"by": "Ada"}


@pytest.fixture
def action_servers() -> list[ActionServer]:
    return [order_actions.server]


def lamps_taken(sagas: SagaTester) -> int:
    return len(sagas.query("shop", "SELECT key FROM reservations"))


def test_the_lamp_is_sent_once_somebody_approves(sagas: SagaTester) -> None:
    run = sagas.run(order)
    assert run["approval"].state == "waiting"
    assert run.order == ["stock"]

    sagas.advance(timedelta(hours=20))
    run.signal("approval", APPROVED).wait()

    assert run.output == "a lamp, approved by Ada"
    assert lamps_taken(sagas) == 1


def test_without_an_approval_the_lamp_goes_back(sagas: SagaTester) -> None:
    run = sagas.run(order)

    sagas.advance(timedelta(days=1, seconds=1))

    assert run.undone
    assert run.order == ["stock", "undo stock"]
    assert lamps_taken(sagas) == 0


def test_there_is_one_lamp(sagas: SagaTester) -> None:
    sagas.run(order)

    assert [error.code for error in sagas.run(order).errors] == ["sold_out"]


def test_until_the_money_is_taken_there_is_a_way_back(sagas: SagaTester) -> None:
    assert sagas.run(order, Fail("payment"), signals={"approval": APPROVED}).undone
    assert lamps_taken(sagas) == 0


def test_once_the_money_is_taken_the_parcel_is_sent_however_often_it_takes(sagas: SagaTester) -> None:
    run = sagas.run(order, *(Fail("parcel", call=call) for call in (1, 2, 3)), signals={"approval": APPROVED})

    assert run.done
    assert [call.answer for call in run.calls_of("parcel")] == ["failure"] * 3 + ["output"]
    assert len({call.key for call in run.calls_of("parcel")}) == 4


def test_every_effect_or_none(sagas: SagaTester) -> None:
    sagas.assert_all_or_none(order, signals={"approval": APPROVED}, world=lamps_taken)
