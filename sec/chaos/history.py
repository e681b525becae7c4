"""The history of a chaos run: one JSON line for each thing that a client did or saw, and for each fault.

All times are microseconds of the machine's wall clock: one machine has one, so that the lines of several processes can be put beside each
other. A call whose outcome the client does not know is `unknown`, never refused.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import IO, Any


def now_us() -> int:
    return time.time_ns() // 1000


class Answer(StrEnum):
    """How a call ended, as its client knows it."""

    OK = "ok"
    REFUSED = "refused"
    """It had no effect, for certain."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class ClientCall:
    """A call of a client: "submit", or "command" with its id and, as the contract writes it in JSON, the command."""

    call: str
    saga_id: str
    start_us: int
    end_us: int
    answer: Answer
    detail: str = ""
    command_id: str = ""
    command: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault as it was injected, from its begin to when it was healed: `how` it was done to the process `target`."""

    kind: str
    how: str
    target: str
    start_us: int
    end_us: int
    why: str = ""
    """"leader" or "owner", where that was what was meant."""
    other: str = ""
    """Of a link, the process at the other end: one way is from `target` to `other`. Several have commas between them."""
    point: str = ""
    """Of a failpoint, where the process killed or stopped itself."""

    @property
    def processes(self) -> frozenset[str]:
        """All that it was done to."""
        return frozenset(name for end in (self.target, self.other) for name in end.split(",") if name)

    def between(self, one: str, other: str) -> bool:
        """Whether it was done to the link of two processes."""
        ends = [end.split(",") for end in (self.target, self.other)]
        return (one in ends[0] and other in ends[1]) or (other in ends[0] and one in ends[1])


@dataclass(frozen=True, slots=True)
class Observed:
    """A record that a watcher of a saga's log was shown."""

    watcher: str
    saga_id: str
    sequence: int
    epoch: int
    writer: str
    kind: str
    at_us: int


@dataclass(frozen=True, slots=True)
class Read:
    """A linearizable read of a saga: the sequence of the next record, as this reader was answered."""

    reader: str
    saga_id: str
    next_sequence: int
    start_us: int
    end_us: int


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the cluster said of its SEC nodes."""

    at_us: int
    leader: str
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Milestone:
    """The run itself: "start", "healed", "settled" or "gave up"."""

    what: str
    at_us: int


Event = ClientCall | Fault | Observed | Read | Cluster | Milestone
_KINDS: dict[str, type[Event]] = {
    "call": ClientCall,
    "fault": Fault,
    "observed": Observed,
    "read": Read,
    "cluster": Cluster,
    "milestone": Milestone,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


@dataclass(frozen=True, slots=True)
class Delivery:
    """A delivery of a call as an action server saw it: at `at_us` it arrived, and at `end_us` its answer left (0: never, as far as is known).

    `outcome` is "output", "failure", or the name of the gRPC status that was answered.
    """

    server: str
    at_us: int
    saga_id: str
    node: str
    phase: str
    key: str
    epoch: int
    attempt: int
    sec_node: str
    outcome: str = ""
    end_us: int = 0
    again: bool = False
    """It was made by the action server itself: a copy of one that an SEC node had made."""
    batched: bool = False
    """It came in a batch of calls."""


class DamagedHistory(Exception):
    """A file of a run cannot be read. The message names the file and the line."""


class Writer:
    """Appends events to a file; each is there when `write` returns."""

    def __init__(self, path: Path) -> None:
        self._file: IO[str] = path.open("a", encoding="utf-8")

    def write(self, event: Event) -> None:
        write_line(self._file, {"event": _NAMES[type(event)], **asdict(event)})

    def close(self) -> None:
        self._file.close()


def write_line(file: IO[str], value: Mapping[str, Any]) -> None:
    """Appends a JSON line in one piece: a process that is killed leaves all of it or nothing."""
    file.write(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")
    file.flush()


def read_events(path: Path) -> list[Event]:
    """The events of a file, in its order. Raises `DamagedHistory`."""
    return [_event(path, number, value) for number, value in _lines(path)]


def _event(path: Path, number: int, value: dict[str, Any]) -> Event:
    try:
        made = _KINDS[value.pop("event")](**value)
        if isinstance(made, ClientCall):
            return replace(made, answer=Answer(made.answer))
        if isinstance(made, Cluster):
            return replace(made, nodes=tuple(made.nodes))
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedHistory(f'Line {number} of "{path}" is not an event that this version can read: {error}') from error
    return made


def read_deliveries(path: Path) -> list[Delivery]:
    """The deliveries in the journal of an action server, in the order of their arrivals. Raises `DamagedHistory`."""
    arrived: dict[str, dict[str, Any]] = {}
    for number, value in _lines(path):
        try:
            arrived.setdefault(value.pop("id"), {}).update(value)
        except (KeyError, TypeError) as error:
            raise DamagedHistory(f'Line {number} of "{path}" is not a delivery: {error}') from error
    try:
        return [Delivery(server=path.name.partition(".")[0], **value) for value in arrived.values()]
    except TypeError as error:
        raise DamagedHistory(f'"{path}" has a delivery that this version cannot read: {error}') from error


def _lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DamagedHistory(f'Line {number} of "{path}" is not JSON: {error}') from error
        if not isinstance(value, dict):
            raise DamagedHistory(f'Line {number} of "{path}" is not a JSON object.')
        found.append((number, value))
    return found
