"""The door of an SEC node: what comes from outside is refused here, and nowhere behind it, when the node holds as much as it may.

Whatever has come in is never dropped: a saga that was accepted runs to its end. So each queue behind the door is bounded by what was let in:
a saga has one write under way at most, and each call that writes has one. Takeovers are not asked at the door, since a saga without an owner is
worse than one that waits for its turn; a node that owns too many after them takes no new ones until some have ended.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum

from sec.core.errors import SagaError
from sec.core.records import SecNodeName
from sec.node.settings import Bounds
from sec.store.commit import GroupCommit

RETRY_AFTER_S = 1.0
"""When a caller that was refused may ask this node again. Many are refused at once, so each adds a random time of its own."""
SHOWN_S = 5.0
"""A node is shown as overloaded for so long after it has refused something."""


class Bound(Enum):
    """What a call was refused for."""

    ACTIVE = "active"
    SUBMITS = "submits"
    WAITING = "waiting"
    READS = "reads"
    COMMANDS = "commands"
    ACTION_SERVERS = "action_servers"


class Overloaded(SagaError):
    """Refused at the door: nothing was done. Another SEC node may have room now, this one after `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float = RETRY_AFTER_S) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Door:
    """Counts what one SEC node holds. `owned` answers how many active sagas that is. `refused` counts what was refused, by bound."""

    def __init__(self, sec_node: SecNodeName, bounds: Bounds, owned: Callable[[], int], commits: GroupCommit) -> None:
        self.refused: Counter[Bound] = Counter()
        self._sec_node = sec_node
        self._bounds = bounds
        self._owned = owned
        self._commits = commits
        self._submits = 0
        self._starting = 0
        self._reads = 0
        self._loop = asyncio.get_running_loop()
        self._last_refusal = ""
        self._refused_at = -SHOWN_S

    @contextmanager
    def write(self, subject: str, *, starts: bool) -> Iterator[None]:
        """A call that writes, for as long as it lasts: a submit, a start, a command, a deletion. `starts`: this node will own a saga by it.
        `subject` begins the sentence that says why it is refused. Raises `Overloaded`."""
        bounds = self._bounds
        if self._submits >= bounds.submits:
            raise self.refuse(Bound.SUBMITS, subject, f"has {self._submits} submits and commands in progress")
        if self._commits.waiting_bytes >= bounds.waiting_bytes:
            raise self.refuse(
                Bound.WAITING, subject, f"has {self._commits.waiting_bytes} bytes that wait to be written to the store"
            )
        if starts and (held := self._owned() + self._starting) >= bounds.active:
            raise self.refuse(Bound.ACTIVE, subject, f"has {held} active sagas")
        self._submits += 1
        self._starting += starts
        try:
            yield
        finally:
            self._submits -= 1
            self._starting -= starts

    @contextmanager
    def read(self, subject: str) -> Iterator[None]:
        """A call that reads, waits or watches, for as long as it lasts. Raises `Overloaded`."""
        if self._reads >= self._bounds.reads:
            raise self.refuse(Bound.READS, subject, f"has {self._reads} reads, waits and watches in progress")
        self._reads += 1
        try:
            yield
        finally:
            self._reads -= 1

    def refuse(self, bound: Bound, subject: str, because: str) -> Overloaded:
        """The error to raise for a call that is not let in, which is counted."""
        self.refused[bound] += 1
        self._refused_at = self._loop.time()
        self._last_refusal = f"It refuses what is new: it {because}, which is as many as it may."
        return Overloaded(f'{subject} was refused: SEC node "{self._sec_node}" {because}, which is as many as it may.')

    @property
    def overload(self) -> str:
        """Why it refuses new work now, or did a moment ago; empty when it does not."""
        return self._last_refusal if self._loop.time() - self._refused_at < SHOWN_S else ""

    def used(self) -> Mapping[Bound, tuple[int, int]]:
        """How much of each bound is used, and the bound."""
        bounds = self._bounds
        return {
            Bound.ACTIVE: (self._owned(), bounds.active),
            Bound.SUBMITS: (self._submits, bounds.submits),
            Bound.WAITING: (self._commits.waiting_bytes, bounds.waiting_bytes),
            Bound.READS: (self._reads, bounds.reads),
        }
