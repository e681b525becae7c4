"""The cases of docs/conformance.md, at the core: the demo saga, and how often repeated calls reach an action server."""

from collections import Counter

import compact
import pytest
from mini_driver import MiniDriver
from sec_model.graph import NodeKind

from sec.core.checkers import check_all_or_none
from sec.core.records import LogEntry, Phase
from sec.core.status import node_state
from sec.core.transitions import Course
from sec.sim.effects import FOREVER, FakeActionServer

DEMO = compact.graph(compact.DEMO_PROVISION, "demo-provision")
NODES = [
    "instance_id",
    "server_alloc_params",
    "instance_ip",
    "volume_id",
    "server_alloc",
    "server_alloc/server_id",
    "server_alloc/server_reserve",
    "instance_configure",
    "volume_attach",
    "instance_boot",
    "print",
]
ACTIONS = [n.path for n in DEMO.nodes if not n.instant]
UNWOUND = dict.fromkeys(NODES, "undone") | {"instance_boot": "failed", "print": "abandoned"}
STUCK = UNWOUND | {"instance_id": "undo-failed"}


def demo(*, boot_fails: bool = False, undo_fails: bool = False) -> MiniDriver:
    """The demo saga, run as far as it gets."""
    server = FakeActionServer(undo_failing={"instance_id": FOREVER} if undo_fails else {})
    driver = MiniDriver(DEMO, server, injected={"instance_boot"} if boot_fails else set())
    driver.submit()
    driver.run()
    return driver


def recovered(driver: MiniDriver, *, cut: int, boot_fails: bool = False) -> MiniDriver:
    """The same saga in the hands of a new owner, with the last records lost; its calls are counted anew."""
    server = driver.server.copy()
    server.calls = Counter()
    again = MiniDriver(DEMO, server, driver.log[: len(driver.log) - cut], injected={"instance_boot"} if boot_fails else set())
    again.recover()
    return again


def status(driver: MiniDriver) -> dict[str, str]:
    shown = [n for n in driver.graph.nodes if n.kind is not NodeKind.SUBSAGA_START]
    return {n.path: node_state(driver.state, n.index).value for n in shown}


def errors(driver: MiniDriver) -> list[tuple[str, Phase]]:
    return [(m.node, m.phase) for m in driver.state.mishaps]


def records(log: list[LogEntry]) -> list[str]:
    return [f"{type(e.record).__name__} {getattr(e.record, 'node', '')}".strip() for e in log]


def test_demo_nodes_stand_in_order_of_insertion() -> None:
    assert list(DEMO.by_path) == NODES


def test_demo_status_before_start() -> None:
    driver = MiniDriver(DEMO, FakeActionServer())
    driver.submit(start=False)
    assert status(driver) == dict.fromkeys(NODES, "blocked") | {"instance_id": "queued"}
    assert driver.state.course is Course.CREATED
    assert not driver.calls


def test_demo_run() -> None:
    driver = demo()
    assert status(driver) == dict.fromkeys(NODES, "done")
    assert driver.state.course is Course.DONE
    assert driver.state.output_of(DEMO.final).value() == "print", "the output is that of the last node"
    assert all(driver.called(path) == (1, 0) for path in ACTIONS)
    check_all_or_none(DEMO, driver.log, driver.server.effects)


def test_demo_error_at_instance_boot() -> None:
    driver = demo(boot_fails=True)
    assert status(driver) == UNWOUND
    assert driver.state.course is Course.UNDONE
    assert errors(driver) == [("instance_boot", Phase.DO)], "the error names the node"
    assert driver.called("instance_boot") == driver.called("print") == (0, 0)
    check_all_or_none(DEMO, driver.log, driver.server.effects)


def test_demo_error_at_instance_boot_and_undo_of_instance_id_fails() -> None:
    driver = demo(boot_fails=True, undo_fails=True)
    assert status(driver) == STUCK
    assert driver.state.course is Course.STUCK
    assert errors(driver) == [("instance_boot", Phase.DO), ("instance_id", Phase.UNDO)], "both errors are shown"
    assert driver.server.effects == {"instance_id"}


def test_demo_recovered_from_a_complete_log() -> None:
    driver = demo()
    again = recovered(driver, cut=0)
    assert status(again) == dict.fromkeys(NODES, "done")
    assert again.log == driver.log
    assert not again.calls
    assert not again.server.calls, "no action is called"


def test_demo_recovered_with_the_last_5_records_cut_off() -> None:
    driver = demo()
    assert records(driver.log)[-5:] == [
        "Started instance_boot",
        "Succeeded instance_boot",
        "Started print",
        "Succeeded print",
        "Done",
    ]
    again = recovered(driver, cut=5)
    assert status(again)["instance_boot"] == "working", "boot is redone"
    again.run()
    assert status(again) == dict.fromkeys(NODES, "done")
    assert again.server.calls == {("instance_boot", Phase.DO): 1, ("print", Phase.DO): 1}
    check_all_or_none(DEMO, again.log, again.server.effects)


@pytest.mark.parametrize("cut", range(1, 18))
def test_demo_failed_recovered_with_the_last_records_cut_off(cut: int) -> None:
    """3 in the table; as many as there are since the failure here."""
    driver = demo(boot_fails=True)
    again = recovered(driver, cut=cut, boot_fails=True)
    again.run()
    assert status(again) == UNWOUND
    assert again.state.course is Course.UNDONE
    assert errors(again) == [("instance_boot", Phase.DO)]
    check_all_or_none(DEMO, again.log, again.server.effects)


def test_demo_failed_recovered_with_the_last_3_records_cut_off_goes_on_unwinding() -> None:
    driver = demo(boot_fails=True)
    assert records(driver.log)[-3:] == ["UndoStarted instance_id", "UndoFinished instance_id", "Done"]
    again = recovered(driver, cut=3, boot_fails=True)
    assert again.state.course is Course.UNWINDING
    assert status(again)["instance_id"] == "undoing"
    again.run()
    assert status(again) == UNWOUND
    assert again.server.calls == {("instance_id", Phase.UNDO): 1}, "nothing else is called"


def test_demo_stuck_recovered() -> None:
    driver = demo(boot_fails=True, undo_fails=True)
    again = recovered(driver, cut=0, boot_fails=True)
    assert status(again) == STUCK
    assert errors(again) == errors(driver)
    assert not again.calls, "nothing is dispatched"
    assert records(again.log[len(driver.log) :]) == ["OwnerChanged"], "unchanged but for its owner"
    assert not again.server.calls


REPEATS = {
    "plain": ((1, 1), None, (1, 0), (1, 0)),
    "repeat n1 do 2": ((2, 1), None, (2, 0), (1, 0)),
    "repeat n1 2/1 and n2 fails": ((2, 1), "n2", (2, 1), (0, 0)),
    "repeat n1 2/2 and n2 fails": ((2, 2), "n2", (2, 2), (0, 0)),
    "repeat n1 1/2 and n2 fails": ((1, 2), "n2", (1, 2), (0, 0)),
    "repeat n1 3/5 and n2 fails": ((3, 5), "n2", (3, 5), (0, 0)),
    "n1 fails": ((1, 1), "n1", (0, 0), (0, 0)),
}


@pytest.mark.parametrize("row", REPEATS)
def test_repeats(row: str) -> None:
    (n1_do, n1_undo), fails, n1_called, n2_called = REPEATS[row]
    repeat = {("n1", Phase.DO): n1_do, ("n1", Phase.UNDO): n1_undo}
    driver = MiniDriver(compact.graph("n1 > n2"), FakeActionServer(), repeat=repeat, injected={fails} if fails else set())
    driver.submit()
    driver.run()
    assert (driver.called("n1"), driver.called("n2")) == (n1_called, n2_called)
    assert driver.state.course is (Course.UNDONE if fails else Course.DONE)
    check_all_or_none(driver.graph, driver.log, driver.server.effects)
