"""Points between one thing and the next at which a chaos run has its SEC node die or hang. In any other node they do nothing.

A run arms one by writing `POINT SIGNAL COUNT` into the node's file and sending SIGUSR1; the file goes when the node has read it. At the
COUNT-th time that the node comes to the point, it sends the signal to itself. An empty file disarms.
"""

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENT = "SEC_FAILPOINTS"
"""Names the folder in which the node's file, called like the node, will be. Not set: the points do nothing."""
POINTS = (
    "before_submit",
    "after_submit",
    "before_commit",
    "after_commit",
    "after_apply",
    "before_call",
    "after_call",
    "before_claim",
    "after_claim",
)


@dataclass(slots=True)
class _Armed:
    point: str
    signum: int
    left: int


_armed: _Armed | None = None


def reach(point: str) -> None:
    """The node has come to one of `POINTS`. May not return."""
    if _armed is not None:
        _hit(_armed, point)


def arm(file: Path) -> None:
    """Does what a file says, and removes it; without one, nothing."""
    global _armed
    with suppress(FileNotFoundError):
        words = file.read_text(encoding="ascii").split()
        _armed = _Armed(words[0], signal.Signals[words[1]], int(words[2])) if words else None
        file.unlink()


def _hit(armed: _Armed, point: str) -> None:
    global _armed
    if point != armed.point:
        return
    armed.left -= 1
    if armed.left <= 0:
        _armed = None
        os.kill(os.getpid(), armed.signum)
