"""What happens in a run: sagas, and steps at their times. A plan is drawn from a seed, can be made shorter, and can be read."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from sec_model import Deadline, Definition, Graph, OnDeadline, Payload, RetryPolicy, TimerNode, compile_graph
from sec_model.commands import (
    Abort,
    Command,
    InjectError,
    InjectRepeat,
    NodePath,
    Pause,
    Phase,
    Resume,
    SetBreakpoint,
    SetDeadline,
    SetMaxInFlight,
    Signal,
    Step,
)
from sec_model.graph import NodeKind

from sec.sim.definitions import Palette, random_definition
from sec.sim.effects import FOREVER
from sec.sim.network import Weather

LEASE_TTL_S = 2
FAULTS_S = 5.0
"""Faults begin within this time. When the last is over everything is healed."""

MOMENTS = ("a write is sent", "a write has landed", "a call is made", "a call has been answered")
"""Moments at which a fault may strike, besides at its time: the next time that the node comes there."""

_HASTY = {"initial_backoff_s": 0.05, "max_backoff_s": 0.4, "attempt_timeout_s": 1.5}
_PATIENT = {"initial_backoff_s": 1.0, "max_backoff_s": 2.0, "attempt_timeout_s": 1.5}
PALETTE = Palette(
    tuple(RetryPolicy(max_attempts=n, **_HASTY) for n in (1, 2, 5, 8)) + (RetryPolicy(max_attempts=4, **_PATIENT),) * 2,
    (None,) * 8 + tuple(Deadline(s, then) for s in (0.5, 3.0) for then in OnDeadline),
    (TimerNode(after_s=0.5), TimerNode(after_s=2.0), TimerNode(until_us=3_000_000)),
)


@dataclass(frozen=True)
class SagaPlan:
    """A saga and how its actions behave. `failing` and `undo_failing` as in `FakeActionServer`; `slow` actions take so many seconds; `busy`
    ones have no room for so many seconds from their first call on."""

    name: str
    definition: Definition
    deadline: Deadline | None = None
    failing: dict[str, int] = field(default_factory=dict)
    undo_failing: dict[str, int] = field(default_factory=dict)
    slow: dict[str, float] = field(default_factory=dict)
    busy: dict[str, float] = field(default_factory=dict)
    operator: str = "skips"
    """What is done about undos that fail for good: they are skipped, marked as done by hand, or left."""

    @property
    def graph(self) -> Graph:
        return compile_graph(self.definition)

    def __str__(self) -> str:
        nodes = ", ".join(
            n.path + (f"<-{'+'.join(self.graph.nodes[p].path for p in n.parents)}" if n.parents else "") for n in self.graph.nodes
        )
        extra = [f"deadline {self.deadline.after_s:g} s, then {self.deadline.then.value}"] if self.deadline else []
        extra += [
            f"{what}: {which}"
            for what, which in (("fail", self.failing), ("undo fails", self.undo_failing), ("slow", self.slow), ("busy", self.busy))
            if which
        ]
        return f"saga {self.name}: {nodes}{''.join(f'; {e}' for e in extra)}"


@dataclass(frozen=True)
class Do:
    """A step: at `at_s` something is done or goes wrong. `node` is an SEC node, `saga` a saga's name; the rest as `what` needs it.

    With a `moment` a fault strikes when the node next comes there.
    """

    at_s: float
    what: str
    node: str = ""
    saga: str = ""
    for_s: float = 0.0
    moment: str = ""
    command: Command | None = None
    count: int = 0

    def __str__(self) -> str:
        words = [f"{self.at_s:7.3f}  {self.what}"]
        words += [f"saga {self.saga}"] if self.saga else []
        words += [f"{self.command}"] if self.command else []
        words += [f"{'at' if self.saga else 'node'} {self.node}"] if self.node else []
        words += [f"({self.count})"] if self.count else []
        words += [f"for {self.for_s:.3f} s"] if self.for_s else []
        words += [f"when {self.moment}"] if self.moment else []
        return " ".join(words)


@dataclass(frozen=True)
class Plan:
    seed: int
    nodes: tuple[str, ...]
    sagas: tuple[SagaPlan, ...]
    steps: tuple[Do, ...]
    weather: Weather

    def lines(self) -> Iterator[str]:
        """The plan as a script."""
        w = self.weather
        yield f"nodes {', '.join(self.nodes)}; of messages {w.late:.0%} are late, {w.lost_calls:.1%} of calls and {w.lost_answers:.1%} of answers are lost"
        for saga in self.sagas:
            yield str(saga)
        for step in self.steps:
            yield str(step)


FAULTS = (
    *("crash", "crash", "stop", "stop", "stop", "cut off", "cut off"),
    *("revoke the lease of", "revoke the lease of", "lose answers", "lose writes", "break watches", "shut down"),
)
RARE_FAULTS = ("drain", "slow down", "no action servers", "compact", "forget the connection")


def draw_plan(seed: int) -> Plan:
    """The plan of a seed."""
    rng = Random(f"plan {seed}")
    nodes = tuple(f"sec-{n}" for n in range(1, rng.choice([2, 2, 3, 3, 3]) + 1))
    sagas = tuple(_saga(rng, f"saga-{n}") for n in range(1, rng.choice([1, 1, 2, 2, 3]) + 1))
    steps: list[Do] = []
    for saga in sagas:
        at_s = rng.uniform(0.0, 2.5)
        later = rng.random() < 0.15
        steps.append(Do(at_s, "submit later" if later else "submit", rng.choice(nodes), saga.name))
        if later:
            steps.append(Do(at_s + rng.uniform(0.1, 1.5), "start", rng.choice(nodes), saga.name))
        if rng.random() < 0.2:
            steps.append(Do(at_s + rng.uniform(0.0, 0.3), "submit", rng.choice(nodes), saga.name))
        if rng.random() < 0.5:
            for _ in range(rng.randint(1, 4)):
                command = _command(rng, saga.graph)
                steps.append(Do(at_s + rng.uniform(0.02, 4.0), "order", rng.choice(nodes), saga.name, command=command))
    steps += [_fault(rng, nodes) for _ in range(rng.choice([0, 1, 2, 3, 3, 4, 5]))]
    calm = rng.random() < 0.4
    weather = Weather() if calm else Weather(rng.choice([0, 0.01, 0.05]), rng.choice([0, 0.01, 0.04]), rng.choice([0, 0.01, 0.04]))
    return Plan(seed, nodes, sagas, tuple(sorted(steps, key=lambda step: step.at_s)), weather)


def _fault(rng: Random, nodes: tuple[str, ...]) -> Do:
    what = rng.choice(FAULTS if rng.random() < 0.75 else RARE_FAULTS)
    at_s, node = rng.uniform(0.2, FAULTS_S), rng.choice(nodes)
    moment = rng.choice(MOMENTS) if rng.random() < 0.6 else ""
    for_s = rng.choice([rng.uniform(0.05, 1.0), rng.uniform(1.0, 2.5 * LEASE_TTL_S)])
    match what:
        case "compact":
            return Do(at_s, what)
        case "no action servers":
            return Do(at_s, what, for_s=for_s)
        case "lose answers" | "lose writes":
            return Do(at_s, what, node, count=rng.randint(1, 3))
        case "break watches":
            return Do(at_s, what, node)
        case "revoke the lease of":
            return Do(at_s, what, node, moment=rng.choice(MOMENTS))
        case _:
            return Do(at_s, what, node, for_s=for_s, moment=moment)


def _saga(rng: Random, name: str) -> SagaPlan:
    plain = rng.random() < 0.6
    definition = random_definition(rng, rng.choice([2, 4, 4, 6]), plain=plain, palette=PALETTE)
    graph = compile_graph(definition)
    actions: list[str] = [n.path for n in graph.nodes if n.action is not None]
    forward = any(n.never_given_up for n in graph.nodes)  # there what fails is tried until it succeeds
    failing = {path: rng.choice([1, 2, 2 if forward else FOREVER]) for path in actions if rng.random() < 0.08}
    undo_failing = {path: rng.choice([1, FOREVER]) for path in actions if rng.random() < 0.06}
    slow = {path: rng.choice([0.2, 1.0]) for path in actions if rng.random() < 0.4}
    busy = {path: rng.uniform(1.0, 4.0) for path in actions if rng.random() < 0.15}
    deadline = Deadline(rng.choice([0.3, 2.0]), rng.choice(list(OnDeadline))) if not plain and rng.random() < 0.2 else None
    return SagaPlan(name, definition, deadline, failing, undo_failing, slow, busy, rng.choice(["skips", "marks", "leaves"]))


def _command(rng: Random, graph: Graph) -> Command:
    path, phase = rng.choice(graph.nodes).path, rng.choice(list(Phase))
    signals = [n.path for n in graph.nodes if n.kind is NodeKind.SIGNAL]
    if signals and rng.random() < 0.3:
        return Signal(rng.choice(signals), Payload.json(rng.randrange(100)))
    commands: list[Command] = [
        Pause("Look at it."),
        Pause("Look at it."),
        Resume(),
        Abort("Not wanted any more."),
        Abort("Not wanted any more."),
        Step(),
        SetBreakpoint(path, rng.random() < 0.5),
        SetMaxInFlight(rng.randrange(3)),
        InjectError(path, phase),
        InjectRepeat(path, phase, 2),
        SetDeadline(NodePath(""), due_us=round(rng.uniform(0.5, 6.0) * 1e6)),
    ]
    return rng.choice(commands)
