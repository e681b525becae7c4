"""What a chaos run does, and when: a function of its seed. Pure.

The plan is repeatable to the last number. What comes of it is not: processes and sockets have their own time.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from sec_model import Definition, Payload, RetryPolicy, Saga, UndoPolicy, action, signal, subsaga, timer
from sec_model.commands import Abort, Command, NodePath, Pause, Resume, SetBreakpoint, SetMaxInFlight, Signal, SkipUndo, Step

from sec.node.failpoints import POINTS

ACTION = "chaos"
"""The one action of all nodes. What it does at a node stands in the params of the saga: see `Manner`."""
ALWAYS = 1_000_000
"""As a number of attempts: every one."""
RETRY = RetryPolicy(max_attempts=6, initial_backoff_s=0.1, max_backoff_s=2.0, attempt_timeout_s=5.0)
RESTS_S = 5.0
"""How long a saga waits, twice, that rests."""
LINGERS_S = 120.0
"""How long a saga may wait for its signal, so that many are owned at a time."""
LINKS_PAUSE_S = 1.5
"""Between faults of links, about. They overlap."""
UNDO_RETRY = RetryPolicy(max_attempts=200, initial_backoff_s=0.1, max_backoff_s=2.0, attempt_timeout_s=5.0)
"""Long enough to outlast every fault, so that a saga is stuck only where the plan wants it."""


class FaultKind(StrEnum):
    """What can be done to a cluster. The words are those of `sec chaos run --faults`."""

    KILL = "kill"
    STOP = "stop"
    RESTART = "restart"
    DRAIN = "drain"
    LEASE = "lease"
    FAILPOINT = "failpoint"
    SERVERS = "servers"
    PARTITION = "partition"
    ONEWAY = "oneway"
    DELAY = "delay"
    RESET = "reset"
    REPEAT = "repeat"
    ETCD = "etcd"
    REPLACE = "replace"
    """Of a member of etcd, by one without data: how, and not a kind of its own."""


KINDS = tuple(kind for kind in FaultKind if kind is not FaultKind.REPLACE)
"""Those that can be asked for."""
DEFAULT_FAULTS = tuple(kind for kind in KINDS if kind is not FaultKind.ETCD)
ON_NODES = (FaultKind.KILL, FaultKind.STOP, FaultKind.RESTART, FaultKind.DRAIN, FaultKind.LEASE, FaultKind.FAILPOINT)
ON_LINKS = (FaultKind.PARTITION, FaultKind.ONEWAY, FaultKind.DELAY, FaultKind.RESET)

LEADER, OWNER = "leader", "owner"
"""Targets that are known only when the fault comes: the leader, and the owner of the saga that was submitted last."""
CLIENT, ETCD, ALL = "client", "etcd", "all"
"""Ends of links: the clients of the run, all members of etcd, and whoever there is."""
SERVERS = ("server-1", "server-2")
"""The action servers of a run."""
ETCD_MEMBERS = 3
"""The least of a run that kills members of etcd: one may be away."""


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """A fault that begins `at_s` after the start of the run, and is healed `lasts_s` later.

    `target` is an SEC node, an action server, an etcd member ("etcd-1"), `LEADER` or `OWNER`.
    `how` is what is done to it; for `FaultKind.SERVERS` one of kill, stop and restart, for `FaultKind.ETCD` also replace.

    Of a link, `target` and `other` are the ends, which may be `CLIENT`, `ETCD` and `ALL` too; one way is that from `target` to `other`.
    Of a failpoint, `point` is where the node dies (`how` is kill) or hangs (stop) when it comes there for the `nth` time from then on.
    """

    at_s: float
    kind: FaultKind
    target: str
    how: FaultKind
    lasts_s: float
    other: str = ""
    delay_s: float = 0.0
    point: str = ""
    nth: int = 1


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
    again: dict[str, float] = field(default_factory=dict)
    """Every delivery is made once more, so many seconds after it came."""
    astray: dict[str, int] = field(default_factory=dict)
    """The delivery is lost on its way, of an undo only the first one, and comes later, when the caller has given it up."""
    astray_s: dict[str, float] = field(default_factory=dict)
    """How many seconds later."""

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
    etcd: int = 1
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
    if options.duration_s <= 0 or options.rate_per_s <= 0 or options.nodes < 1 or options.etcd < 1:
        raise ValueError("A chaos run needs a duration, a rate of sagas and numbers of nodes and members above 0.")
    if FaultKind.ETCD in options.faults and options.etcd < ETCD_MEMBERS:
        raise ValueError(f"To kill members of etcd there must be {ETCD_MEMBERS} of them at least: --etcd {ETCD_MEMBERS}.")
    # One source of chance for each, so that with fewer kinds of faults the sagas stay the same.
    faults = sorted(_faults(options, random.Random(f"faults {options.seed}")), key=lambda fault: fault.at_s)
    sagas = tuple(_sagas(options, random.Random(f"sagas {options.seed}")))
    if FaultKind.REPEAT in options.faults:
        _repeat(sagas, random.Random(f"repeats {options.seed}"))
    return Plan(tuple(faults), sagas)


# faults


def _faults(options: Options, chance: random.Random) -> Iterator[PlannedFault]:
    nodes = [f"sec-{index + 1}" for index in range(options.nodes)]
    members = [f"etcd-{index + 1}" for index in range(options.etcd)]
    if on_nodes := [kind for kind in options.faults if kind in ON_NODES]:
        yield from _lane(options, chance, on_nodes, [LEADER, OWNER, OWNER, *nodes], pause_s=3.0)
    if on_links := [kind for kind in options.faults if kind in ON_LINKS]:
        yield from _links(options, chance, on_links, nodes, members)
    if FaultKind.SERVERS in options.faults:
        yield from _lane(options, chance, [FaultKind.SERVERS], SERVERS, pause_s=6.0)
    if FaultKind.ETCD in options.faults:
        yield from _lane(options, chance, [FaultKind.ETCD], members, pause_s=3.0, apart=True)


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
            how = chance.choice((FaultKind.KILL, FaultKind.KILL, FaultKind.STOP, FaultKind.RESTART, FaultKind.REPLACE))
        elif kind is FaultKind.FAILPOINT:
            how = chance.choice((FaultKind.KILL, FaultKind.STOP))
        lasts_s = _lasts_s(how, chance, options.lease_ttl_s)
        planned = PlannedFault(round(at_s, 3), kind, chance.choice(targets), how, lasts_s)
        if kind is FaultKind.FAILPOINT:
            planned = replace(planned, point=chance.choice(POINTS), nth=chance.randint(1, 10))
        yield planned
        at_s += chance.uniform(0.3, 2.0) * pause_s + (lasts_s + 3.0 if apart else 0.0)


def _links(
    options: Options, chance: random.Random, kinds: Sequence[FaultKind], nodes: Sequence[str], members: Sequence[str]
) -> Iterator[PlannedFault]:
    at_s = chance.uniform(0.5, 2.0)
    while at_s < options.duration_s:
        kind = chance.choice(kinds)
        node = chance.choice([LEADER, OWNER, OWNER, *nodes])
        other = chance.choice([ETCD, ETCD, *members, *nodes, *SERVERS, *SERVERS, CLIENT, ALL])
        ends = [node, other]
        if len(members) > 1 and chance.random() < 0.25:
            ends = [chance.choice(members), chance.choice([ALL, *members])]
        chance.shuffle(ends)
        lasts_s = round(chance.uniform(0.2, 2.5 * options.lease_ttl_s), 3)
        delay_s = round(chance.uniform(0.02, 0.2 if chance.random() < 0.5 else 1.5), 3) if kind is FaultKind.DELAY else 0.0
        if kind is FaultKind.RESET:
            lasts_s = 0.0
        if ends[0] != ends[1]:
            yield PlannedFault(round(at_s, 3), kind, ends[0], kind, lasts_s, other=ends[1], delay_s=delay_s)
        at_s += chance.uniform(0.3, 2.0) * LINKS_PAUSE_S


def _lasts_s(how: FaultKind, chance: random.Random, lease_ttl_s: int) -> float:
    """Some are over before the lease is, some are not."""
    if how is FaultKind.LEASE:
        return 0.0
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
    resting = Saga("chaos-resting").append(_step("a")).append(timer("rest", RESTS_S)).append(_step("b"))
    resting.append(timer("again", RESTS_S)).append(_step("c"))
    found = {
        "linear": linear,
        "parallel": parallel,
        "nested": nested,
        "waiting": waiting,
        "committed": committed,
        "resting": resting,
    }
    return {shape: saga.build() for shape, saga in found.items()}


SHAPES = _shapes()
"""The definitions of the sagas, by the names of their shapes."""
NODES = {
    "linear": ("a", "b", "c"),
    "parallel": ("a", "b", "c", "d", "e"),
    "nested": ("a", "in/x", "in/y", "in/z", "in/w", "b"),
    "waiting": ("a", "b"),
    "committed": ("a", "b", "c", "d"),
    "resting": ("a", "b", "c"),
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
        shape = chance.choice([*sorted(SHAPES), *SIGNALS, *SIGNALS])
        manner = _manner(shape, chance)
        commands = sorted(_commands(shape, manner, chance, options.duration_s - at_s), key=lambda planned: planned.after_s)
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
    behind = len(nodes) - len(_behind(shape))
    failing = chance.randrange(len(nodes)) if chance.random() < 0.35 else None
    if failing is not None:  # behind a point of no return a node that always fails would never end
        manner.fail[nodes[failing]] = ALWAYS if failing < behind else chance.randint(1, 2)
        if chance.random() < 0.2 and 0 < failing < behind:
            manner.undo_fail[nodes[0]] = ALWAYS
    return manner


def _behind(shape: str) -> tuple[str, ...]:
    """The point of no return of a shape, and what is behind it."""
    return NODES[shape][1:] if shape == "committed" else ()


def _repeat(sagas: Sequence[PlannedSaga], chance: random.Random) -> None:
    """A chance of its own: without repeats the sagas are otherwise the same."""
    for saga in sagas:
        for path in NODES[saga.shape]:
            draw = chance.random()
            if draw < 0.3:
                saga.manner.again[path] = round(chance.choice((0.0, chance.uniform(0.0, 1.0), chance.uniform(1.0, 8.0))), 3)
            elif draw < 0.45:
                # Behind a point of no return a node of which no delivery comes would never end.
                for_good = path not in _behind(saga.shape) and chance.random() < 0.3
                saga.manner.astray[path] = ALWAYS if for_good else 1
                saga.manner.astray_s[path] = round(chance.uniform(0.1, 6.0), 3)


def _commands(shape: str, manner: Manner, chance: random.Random, left_s: float) -> Iterator[PlannedCommand]:
    first_s = chance.uniform(0.0, 1.0)
    later_s = first_s + chance.uniform(0.3, 3.0)
    last = NodePath(NODES[shape][-1])
    if shape in SIGNALS:
        longest_s = min(LINGERS_S, left_s) if chance.random() < 0.7 else 3.0
        yield _at(chance.uniform(0.0, longest_s), Signal(NodePath(SIGNALS[shape]), Payload.json({"ok": True})))
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
