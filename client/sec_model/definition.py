"""The values that a saga definition is made of. What makes a definition valid stands in `sec_model.graph`."""

import json
from dataclasses import dataclass
from enum import Enum
from typing import Any

from msgspec import Struct

JSON = "application/json"
MAX_WAIT_S = 3_153_600_000
"""A hundred years: what a deadline or a timer may last."""
MAX_INSTANT_US = 253_402_300_799_999_999
"""The end of the year 9999: what calendars hold."""


class DefinitionError(ValueError):
    """A definition breaks a rule. `problems` has every one that was found, each a whole sentence."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__(" ".join(problems))
        self.problems = problems


class Payload(Struct, frozen=True, gc=False):
    """Opaque bytes with a media type. The cluster never looks into them. An empty `content_type` means JSON."""

    content_type: str = ""
    data: bytes = b""

    @classmethod
    def json(cls, value: Any) -> "Payload":
        """The payload of a JSON value. Raises `TypeError` or `ValueError` for what JSON cannot say (NaN among it)."""
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return cls(JSON, text.encode())

    def value(self) -> Any:
        """The JSON value; the bytes themselves for any other content type; None for no value at all."""
        if self.content_type not in ("", JSON):
            return self.data
        return json.loads(self.data) if self.data else None


NO_PAYLOAD = Payload()


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently calls whose outcome is unknown are repeated.

    Attempts count the first call. Pauses grow from `initial_backoff_s` by `multiplier` up to `max_backoff_s`; the share `jitter` of each
    is drawn at random. `overall_timeout_s` bounds all calls and pauses together, over takeovers too; None is no bound.

    A call may bring neither an answer nor a report of progress for `heartbeat_timeout_s`; None: nothing is expected before `attempt_timeout_s`.
    """

    max_attempts: int = 8
    initial_backoff_s: float = 0.1
    max_backoff_s: float = 30.0
    multiplier: float = 2.0
    jitter: float = 0.5
    attempt_timeout_s: float = 30.0
    overall_timeout_s: float | None = None
    heartbeat_timeout_s: float | None = None

    def problems(self) -> list[str]:
        """What is wrong with these numbers, as the ends of sentences."""
        found = []
        if not 1 <= self.max_attempts <= 1_000_000:
            found.append(f"max_attempts is {self.max_attempts}; it must be between 1 and 1000000")
        # In the contract 0 stands for the default, so that a backoff of 0 cannot be said.
        if not 0 < self.initial_backoff_s <= self.max_backoff_s <= 86_400:
            found.append(
                f"the backoff goes from {self.initial_backoff_s} to {self.max_backoff_s} seconds; it must begin above 0, grow, and end by 86400"
            )
        if not 1 <= self.multiplier <= 1000:
            found.append(f"multiplier is {self.multiplier}; it must be between 1 and 1000")
        if not 0 <= self.jitter <= 1:
            found.append(f"jitter is {self.jitter}; it must be between 0 and 1")
        if not 0.001 <= self.attempt_timeout_s <= 86_400:
            found.append(f"attempt_timeout_s is {self.attempt_timeout_s}; it must be between 0.001 and 86400")
        if self.overall_timeout_s is not None and not 0 < self.overall_timeout_s < float("inf"):
            found.append(f"overall_timeout_s is {self.overall_timeout_s}; it must be positive")
        if self.heartbeat_timeout_s is not None and not 1 <= self.heartbeat_timeout_s <= 86_400:
            found.append(f"heartbeat_timeout_s is {self.heartbeat_timeout_s}; it must be between 1 and 86400")
        return found


DEFAULT_RETRY = RetryPolicy()
DEFAULT_UNDO_RETRY = RetryPolicy(max_attempts=20)


class UndoPolicy(Enum):
    """What takes back the effect of an action."""

    ACTION = "action"
    """Its undo action."""
    NONE_NEEDED = "none_needed"
    """Nothing: there is nothing to take back."""
    CONFIRM = "confirm"
    """It cannot be taken back by a call: the saga pauses before the action and waits for an operator. Undone as `MANUAL` is."""
    MANUAL = "manual"
    """An operator, by hand: the unwinding waits there until one says that it is done."""
    POINT_OF_NO_RETURN = "point_of_no_return"
    """Nothing, ever: once the action has taken effect the saga only goes forward."""


class OnDeadline(Enum):
    """What happens when a deadline passes."""

    FAIL = "fail"
    """The saga unwinds."""
    PAUSE = "pause"
    """The saga is paused, and says why."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """So many seconds after its start, by the wall clock of the SEC node that runs it."""

    after_s: float
    then: OnDeadline = OnDeadline.FAIL

    def problem(self) -> str:
        """What is wrong with it, as the end of a sentence. Empty: nothing."""
        return "" if 0 < self.after_s <= MAX_WAIT_S else f"{self.after_s} seconds; it must be above 0 and at most {MAX_WAIT_S}"


@dataclass(frozen=True, slots=True)
class Input:
    """An output that a node reads: of the ancestor `node`, seen by the action as `name`."""

    name: str
    node: str


@dataclass(frozen=True, slots=True)
class ActionNode:
    """Calls the action of this name at an action server. The `deadline` is for the action and its retries, not for its undo action."""

    action: str
    retry: RetryPolicy = DEFAULT_RETRY
    undo_retry: RetryPolicy = DEFAULT_UNDO_RETRY
    undo: UndoPolicy = UndoPolicy.ACTION
    deadline: Deadline | None = None


@dataclass(frozen=True, slots=True)
class ConstantNode:
    """Has its output from the start, no effect, and nothing to undo."""

    value: Payload


@dataclass(frozen=True, slots=True)
class SignalNode:
    """Waits for an event from outside, which somebody sends to this node by its full path. Its output is what was sent. No effect."""

    deadline: Deadline | None = None


@dataclass(frozen=True, slots=True)
class TimerNode:
    """Waits, either for `after_s` seconds from when it starts, or until the instant `until_us` (microseconds since
    1970-01-01T00:00:00Z). Its output is null. No effect."""

    after_s: float = 0.0
    until_us: int = 0

    def problem(self) -> str:
        """What is wrong with it, as the end of a sentence. Empty: nothing."""
        if self.after_s and self.until_us:
            return "has both a time and an instant to wait for: give one of them"
        if self.until_us:
            bad = not 0 < self.until_us <= MAX_INSTANT_US
            return f"waits until {self.until_us} microseconds since 1970; that must be an instant from 1970 to 9999" if bad else ""
        if not self.after_s:
            return "has nothing to wait for: give it a time above 0 seconds, or an instant"
        return (
            "" if 0 < self.after_s <= MAX_WAIT_S else f"waits {self.after_s} seconds; it must be above 0 and at most {MAX_WAIT_S}"
        )


@dataclass(frozen=True, slots=True)
class SubsagaNode:
    """A saga inlined as one node, with a name space of its own. Its params are the output of the ancestor `params_from`, or, when that
    is empty, those of the saga around it. Its output is the output of its final node."""

    saga: "Definition"
    params_from: str = ""


Kind = ActionNode | ConstantNode | SubsagaNode | SignalNode | TimerNode


@dataclass(frozen=True, slots=True)
class Node:
    """A place in the graph. `depends_on` and `inputs` name nodes of the same (sub)saga."""

    name: str
    kind: Kind
    depends_on: tuple[str, ...] = ()
    inputs: tuple[Input, ...] = ()
    label: str = ""


@dataclass(frozen=True, slots=True)
class Definition:
    """A (sub)saga: its nodes in order of insertion. Not checked yet: see `sec_model.graph.compile_graph`."""

    name: str
    nodes: tuple[Node, ...]
