"""What a chaos run does, and when: a function of its seed. Pure.

The plan is repeatable to the last number. What comes of it is not: processes and sockets have their own time.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sec_model import Definition, Payload, RetryPolicy, Saga, UndoPolicy, action, signal, subsaga, timer
from sec_model.commands import Abort, Command, NodePath, Pause, Resume, SetBreakpoint, SetMaxInFlight, Signal, SkipUndo, Step

ACTION = "chaos"
"""The one action of all nodes. What it does at a node stands in the params of the saga: see `Manner`."""
ALWAYS = 1_000_000
"""As a number of attempts: every one."""
RETRY = RetryPolicy(max_attempts=6, initial_backoff_s=0.1, max_backoff_s=2.0, attempt_timeout_s=5.0)
UNDO_RETRY = RetryPolicy(max_attempts=200, initial_backoff_s=0.1, max_backoff_s=2.0, attempt_timeout_s=5.0)
"""Long enough to outlast every fault, so that a saga is stuck only where the plan wants it."""


class FaultKind(StrEnum):
    """What can be done to a cluster. The words are those of `sec chaos run --faults`."""

    KILL = "kill"
    STOP = "stop"
    RESTART = "restart"
    DRAIN = "drain"
    SERVERS = "servers"
    ETCD = "etcd"


DEFAULT_FAULTS = (FaultKind.KILL, FaultKind.STOP, FaultKind.RESTART, FaultKind.DRAIN, FaultKind.SERVERS)

LEADER, OWNER = "leader", "owner"
"""Targets that are known only when the fault comes: the leader, and the owner of the saga that was submitted last."""
SERVERS = ("server-1", "server-2")
"""The action servers of a run."""
ETCD_MEMBERS = 3
"""Of a run that kills members of etcd: one may be away."""


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """A fault that begins `at_s` after the start of the run, and is healed `lasts_s` later.

    `target` is an SEC node, an action server, an etcd member ("etcd-1"), `LEADER` or `OWNER`.
    `how` is what is done to it; for `FaultKind.SERVERS` one of kill, stop and restart.
    """

    at_s: float
    kind: FaultKind
    target: str
    how: FaultKind
    lasts_s: float


@dataclass(frozen=True, slots=True)
class PlannedCommand:
    """A command that is given `after_s` after its saga was submitted."""

    after_s: float
    command: Command


@dataclass(frozen=True, slots=True)
class Manner:
    """How the action behaves in one saga. All are by full paths of nodes; those that count do so in attempts, from the first on."""

    fail: dict[str, int] = field(default_factory=dict)
    """The action fails."""
    undo_fail: dict[str, int] = field(default_factory=dict)
    """The undo action fails for good."""
    unavailable: dict[str, int] = field(default_factory=dict)
    """Action and undo action raise before they have any effect."""
    lost: dict[str, int] = field(default_factory=dict)
    """The effect is had, and the answer is lost."""
    twice: dict[str, int] = field(default_factory=dict)
    """The delivery is made twice."""
    slow: dict[str, float] = field(default_factory=dict)
    """Seconds before the effect."""
    late: dict[str, float] = field(default_factory=dict)
    """Seconds by which the answer is delayed, after the effect."""

    def to_params(self) -> dict[str, Any]:
        """As the params of a saga."""
        return {name: value for name in self.__slots__ if (value := getattr(self, name))}


@dataclass(frozen=True, slots=True)
class PlannedSaga:
    """A saga that is submitted `at_s` after the start of the run. `watched`: its log is watched while it grows."""

    at_s: float
    saga_id: str
    shape: str
    manner: Manner
    commands: tuple[PlannedCommand, ...]
    watched: bool


@dataclass(frozen=True, slots=True)
class Options:
    """What a plan is made from."""

    seed: int
    duration_s: float = 60.0
    nodes: int = 3
    faults: tuple[FaultKind, ...] = DEFAULT_FAULTS
    rate_per_s: float = 5.0
    lease_ttl_s: int = 5


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a run does, in the order of time."""

    faults: tuple[PlannedFault, ...]
    sagas: tuple[PlannedSaga, ...]


def make_plan(options: Options) -> Plan:
    """The plan of a run. Raises `ValueError` for options that make no sense together."""
    if options.duration_s <= 0 or options.rate_per_s <= 0 or options.nodes < 1:
        raise ValueError("A chaos run needs a duration, a rate of sagas and a number of nodes above 0.")
    # One source of chance for each, so that with fewer kinds of faults the sagas stay the same.
    faults = sorted(_faults(options, random.Random(f"faults {options.seed}")), key=lambda fault: fault.at_s)
    return Plan(tuple(faults), tuple(_sagas(options, random.Random(f"sagas {options.seed}"))))


# faults


def _faults(options: Options, chance: random.Random) -> Iterator[PlannedFault]:
    nodes = [f"sec-{index + 1}" for index in range(options.nodes)]
    on_nodes = [kind for kind in options.faults if kind not in (FaultKind.SERVERS, FaultKind.ETCD)]
    if on_nodes:
        yield from _lane(options, chance, on_nodes, [LEADER, OWNER, OWNER, *nodes], pause_s=3.0)
    if FaultKind.SERVERS in options.faults:
        yield from _lane(options, chance, [FaultKind.SERVERS], SERVERS, pause_s=6.0)
    if FaultKind.ETCD in options.faults:
        members = [f"etcd-{index + 1}" for index in range(ETCD_MEMBERS)]
        yield from _lane(options, chance, [FaultKind.ETCD], members, pause_s=10.0, apart=True)


def _lane(
    options: Options,
    chance: random.Random,
    kinds: Sequence[FaultKind],
    targets: Sequence[str],
    *,
    pause_s: float,
    apart: bool = False,
) -> Iterator[PlannedFault]:
    """Faults one after the other, that may overlap unless they are to be kept `apart`."""
    at_s = chance.uniform(0.5, pause_s)
    while at_s < options.duration_s:
        kind = chance.choice(kinds)
        how = kind
        if kind is FaultKind.SERVERS:
            how = chance.choice((FaultKind.KILL, FaultKind.STOP, FaultKind.RESTART))
        elif kind is FaultKind.ETCD:
            how = chance.choice((FaultKind.KILL, FaultKind.STOP))
        lasts_s = _lasts_s(how, chance, options.lease_ttl_s)
        yield PlannedFault(round(at_s, 3), kind, chance.choice(targets), how, lasts_s)
        at_s += chance.uniform(0.3, 2.0) * pause_s + (lasts_s + 3.0 if apart else 0.0)


def _lasts_s(how: FaultKind, chance: random.Random, lease_ttl_s: int) -> float:
    """Some are over before the lease is, some are not."""
    longest_s = {FaultKind.STOP: 2.5 * lease_ttl_s, FaultKind.KILL: 1.5 * lease_ttl_s}.get(how, 3.0)
    return round(chance.uniform(0.2, longest_s), 3)


# sagas


def _step(name: str, undo: UndoPolicy = UndoPolicy.ACTION) -> Any:
    return action(name, ACTION, retry=RETRY, undo_retry=UNDO_RETRY, undo=undo)


def _shapes() -> dict[str, Definition]:
    linear = Saga("chaos-linear").append(_step("a")).append(_step("b")).append(_step("c"))
    parallel = Saga("chaos-parallel").append(_step("a"))
    parallel.append_parallel(_step("b"), _step("c"), _step("d")).append(_step("e"))
    inner = Saga("chaos-inner").append(_step("x")).append_parallel(_step("y"), _step("z")).append(_step("w"))
    nested = Saga("chaos-nested").append(_step("a")).append(subsaga("in", inner)).append(_step("b"))
    waiting = Saga("chaos-waiting").append(_step("a")).append(signal("go")).append(timer("rest", 0.5)).append(_step("b"))
    committed = Saga("chaos-committed").append(_step("a")).append(_step("b", UndoPolicy.POINT_OF_NO_RETURN))
    committed.append(_step("c")).append(_step("d"))
    found = {"linear": linear, "parallel": parallel, "nested": nested, "waiting": waiting, "committed": committed}
    return {shape: saga.build() for shape, saga in found.items()}


SHAPES = _shapes()
"""The definitions of the sagas, by the names of their shapes."""
NODES = {
    "linear": ("a", "b", "c"),
    "parallel": ("a", "b", "c", "d", "e"),
    "nested": ("a", "in/x", "in/y", "in/z", "in/w", "b"),
    "waiting": ("a", "b"),
    "committed": ("a", "b", "c", "d"),
}
"""The actions of each shape, by full paths, the final one last."""
SIGNALS = {"waiting": "go"}
"""The signal node of a shape."""
_CONTROLS = ("none", "none", "none", "pause", "step", "break", "limit", "abort")


def _sagas(options: Options, chance: random.Random) -> Iterator[PlannedSaga]:
    at_s, number = 0.0, 0
    while True:
        at_s += chance.expovariate(options.rate_per_s)
        if at_s >= options.duration_s:
            return
        number += 1
        shape = chance.choice(sorted(SHAPES))
        manner = _manner(shape, chance)
        commands = sorted(_commands(shape, manner, chance), key=lambda planned: planned.after_s)
        saga_id = f"chaos-{options.seed}-{number:05}"
        yield PlannedSaga(round(at_s, 3), saga_id, shape, manner, tuple(commands), watched=number % 4 == 1)


def _manner(shape: str, chance: random.Random) -> Manner:
    nodes = NODES[shape]
    manner = Manner()
    for path in nodes:
        # Fast ones would be over before a command or a fault comes.
        manner.slow[path] = round(chance.uniform(0.0, 2.0 if chance.random() < 0.1 else 0.4), 3)
        draw = chance.random()
        if draw < 0.10:
            manner.unavailable[path] = chance.randint(1, 3)
        elif draw < 0.18:
            manner.lost[path] = chance.randint(1, 3)
        elif draw < 0.26:
            manner.twice[path] = chance.randint(1, 3)
        elif draw < 0.32:
            manner.late[path] = round(chance.uniform(0.1, 1.0), 3)
    behind = nodes.index("b") if shape == "committed" else len(nodes)
    failing = chance.randrange(len(nodes)) if chance.random() < 0.35 else None
    if failing is not None:  # behind a point of no return a node that always fails would never end
        manner.fail[nodes[failing]] = ALWAYS if failing < behind else chance.randint(1, 2)
        if chance.random() < 0.2 and 0 < failing < behind:
            manner.undo_fail[nodes[0]] = ALWAYS
    return manner


def _commands(shape: str, manner: Manner, chance: random.Random) -> Iterator[PlannedCommand]:
    first_s = chance.uniform(0.0, 1.0)
    later_s = first_s + chance.uniform(0.3, 3.0)
    last = NodePath(NODES[shape][-1])
    if shape in SIGNALS:
        yield _at(chance.uniform(0.0, 3.0), Signal(NodePath(SIGNALS[shape]), Payload.json({"ok": True})))
    match chance.choice(_CONTROLS):
        case "pause":
            yield _at(first_s, Pause("chaos"))
            yield _at(later_s, Resume())
        case "step":
            yield _at(first_s, Pause("chaos"))
            yield _at(first_s + 0.5, Step())
            yield _at(first_s + 0.7, Step())
            yield _at(later_s + 0.7, Resume())
        case "break":
            yield _at(first_s, SetBreakpoint(last, after=chance.random() < 0.3))
            yield _at(later_s, Resume())
        case "limit":
            yield _at(first_s, SetMaxInFlight(1))
        case "abort":
            yield _at(first_s, Abort("chaos"))
        case _:
            pass
    if manner.undo_fail and chance.random() < 0.7:
        (path,) = manner.undo_fail
        yield _at(later_s + chance.uniform(2.0, 5.0), SkipUndo(NodePath(path), "chaos"))


def _at(after_s: float, command: Command) -> PlannedCommand:
    return PlannedCommand(round(after_s, 3), command)
