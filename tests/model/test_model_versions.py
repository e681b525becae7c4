"""Names of actions with versions: which are valid, what fits what, and which is the newest."""

import pytest
from sec_model import DefinitionError, Saga, action
from sec_model.versions import any_version, fits, is_asked, is_offer, newest, not_offered, only_offer

OFFERS = frozenset({"pay", "pay@0.9", "pay@1", "pay@1.2", "pay@1.10", "pay@1.10.3", "pay@10", "ship@3", "repay@11", "odd@latest"})


@pytest.mark.parametrize("name", ["pay", "pay.now", "pay@0", "pay@2", "pay@2.1", "pay@2.1.30", "a" * 126 + "@1"])
def test_an_offer(name: str) -> None:
    assert is_offer(name)
    assert is_asked(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "@1",
        "pay@",
        "pay@v1",
        "pay@1.",
        "pay@.1",
        "pay@01",
        "pay@1.2.3.4",
        "pay@1@2",
        "pay@-1",
        "pay@1 ",
        "pay@latest",
        "a" * 127 + "@1",
    ],
)
def test_no_name_of_an_action(name: str) -> None:
    assert not is_offer(name)
    assert not is_asked(name)


def test_one_offer_alone_may_be_asked_for_and_not_offered() -> None:
    assert is_asked("pay@=2.1")
    assert not is_offer("pay@=2.1")
    assert not is_asked("pay@=")
    assert only_offer("pay@=2.1") == "pay@2.1"
    assert only_offer("pay@2.1") is None


@pytest.mark.parametrize(
    ("asked", "offer"),
    [
        ("pay", "pay@10"),
        ("pay@1", "pay@1.10.3"),
        ("pay@1.2", "pay@1.2"),
        ("pay@1.10", "pay@1.10.3"),
        ("pay@=1.10", "pay@1.10"),
        ("pay@0", "pay@0.9"),
        ("pay@1.1", None),
        ("pay@=3", None),
        ("pay@2", None),
        ("ship", "ship@3"),
        ("odd@latest", "odd@latest"),
        ("walk", None),
    ],
)
def test_the_newest_that_fits(asked: str, offer: str | None) -> None:
    assert newest(asked, OFFERS) == offer
    assert offer is None or fits(asked, offer)


def test_an_offer_without_a_version_is_the_oldest() -> None:
    assert newest("pay", frozenset({"pay", "pay@0"})) == "pay@0"
    assert newest("pay", frozenset({"pay"})) == "pay"
    assert newest("pay@0", frozenset({"pay"})) is None
    assert not any_version(frozenset({"pay", "ship"}))
    assert any_version(frozenset({"pay", "ship@1"}))


def test_what_is_not_offered() -> None:
    assert not_offered(["ship@2", "pay@1", "pay@=1.3", "ship"], OFFERS) == ["pay@=1.3", "ship@2"]


def test_a_definition_asks_for_versions() -> None:
    definition = Saga("s").append(action("a", "pay@2")).append(action("b", "pay@=2.1")).build()
    assert [node.kind.action for node in definition.nodes] == ["pay@2", "pay@=2.1"]  # type: ignore[union-attr]
    with pytest.raises(DefinitionError, match='Node "a" calls the action "pay@v2", which is not a valid name'):
        Saga("s").append(action("a", "pay@v2")).build()
