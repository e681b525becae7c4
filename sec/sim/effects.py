"""An action server that keeps the contract, without I/O: what it was called for, and the effects that are left in the world."""

from collections import Counter
from dataclasses import dataclass, field

from sec_model import Payload

from sec.core.records import Fault, Phase

FOREVER = -1


class Refused(Exception):
    """The call is of an owner that has been replaced."""


@dataclass
class FakeActionServer:
    """Keeps the contract: one effect for one key, an undo stops a later do, a failure leaves nothing and is for good, old epochs are refused.

    `failing` nodes fail as often as they are called by another key, `FOREVER` or so often; the undo of a node fails for good as often as
    `undo_failing` says.
    """

    failing: dict[str, int] = field(default_factory=dict)
    undo_failing: dict[str, int] = field(default_factory=dict)
    effects: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    tombstones: set[str] = field(default_factory=set)
    highest_epoch: int = 0
    calls: Counter[tuple[str, Phase]] = field(default_factory=Counter)

    def copy(self) -> "FakeActionServer":
        return FakeActionServer(
            dict(self.failing),
            dict(self.undo_failing),
            set(self.effects),
            set(self.failed),
            set(self.tombstones),
            self.highest_epoch,
            Counter(self.calls),
        )

    def call(self, key: str, phase: Phase, epoch: int) -> Payload | Fault | None:
        """A delivery of a call: the output of a do, None for an undo, or a fault."""
        if epoch < self.highest_epoch:
            raise Refused
        self.highest_epoch = epoch
        path = key.partition("/")[2].partition("~")[0]
        self.calls[path, phase] += 1
        return self._do(key, path) if phase is Phase.DO else self._undo(path)

    def _do(self, key: str, path: str) -> Payload | Fault:
        if path in self.tombstones:
            return Fault("It was undone before it was done.", "undone")
        left = self.failing.get(path, 0)
        if key in self.failed or (left and path not in self.effects):
            if key not in self.failed:
                self.failing[path] = max(left - 1, FOREVER)
                self.failed.add(key)
            return Fault(f"No room for {path}.", "no_room")
        self.effects.add(path)
        return Payload.json(path)

    def _undo(self, path: str) -> Fault | None:
        left = self.undo_failing.get(path, 0)
        if left:
            self.undo_failing[path] = max(left - 1, FOREVER)
            return Fault(f"{path} cannot be undone.", "held")
        self.effects.discard(path)
        self.tombstones.add(path)
        return None

    def undo_by_hand(self, path: str) -> None:
        """An operator takes the effect out of the world."""
        self.effects.discard(path)
        self.tombstones.add(path)
