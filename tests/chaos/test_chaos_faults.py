"""What is done to a cluster in a chaos run is taken back, also when nobody knows whether it was done."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sec_client import SagaError

from sec.chaos.faults import Injector, Situation
from sec.chaos.history import Fault, Writer, read_events
from sec.chaos.plan import FaultKind, PlannedFault
from sec.dev.etcd import EmbeddedEtcd

DRAIN = PlannedFault(0, FaultKind.DRAIN, "sec-1", FaultKind.DRAIN, 0.01)


class Orders:
    """A client whose orders to drain a node end in an error, when there is one."""

    def __init__(self, error: SagaError | None, *, lands: bool) -> None:
        self.drained = False
        self._error, self._lands = error, lands

    async def drain(self, name: str, *, undo: bool = False) -> None:
        assert name == "sec-1"
        if undo:
            self.drained = False
            return
        self.drained = self._lands
        if self._error is not None:
            raise self._error


@pytest.mark.parametrize(
    ("orders", "counted"),
    [
        (Orders(None, lands=True), True),
        (Orders(SagaError("no answer came", definite=False), lands=True), False),
        (Orders(SagaError("there is no such node"), lands=False), False),
    ],
    ids=["answered", "not known", "refused"],
)
async def test_no_node_stays_drained(orders: Orders, counted: bool, etcd: EmbeddedEtcd, tmp_path: Path) -> None:
    history = Writer(tmp_path / "history.jsonl")
    cluster: Any = SimpleNamespace(etcd=etcd, names=("sec-1",))
    client: Any = orders
    unused: Any = None
    injector = Injector(cluster, unused, unused, client, Situation(), history, tmp_path)
    await injector.inject(DRAIN)
    await injector.close()
    history.close()
    assert not orders.drained
    assert [type(event) for event in read_events(tmp_path / "history.jsonl")] == [Fault] * counted
