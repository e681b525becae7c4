"""What operators have set on a saga: pause, steps, breakpoints, limits, injections. A value: each command makes a new one.

Which commands make sense as a saga stands is decided in `sec.core.refusals`; here is what the others set.
"""

from dataclasses import dataclass, field, replace
from typing import assert_never

from sec_model.commands import (
    Abort,
    Command,
    InjectError,
    InjectRepeat,
    MarkUndone,
    NodePath,
    Pause,
    Phase,
    Resume,
    RetryUndo,
    SetBreakpoint,
    SetDeadline,
    SetMaxInFlight,
    Signal,
    SkipUndo,
    Step,
)


@dataclass(frozen=True, slots=True)
class Controls:
    """The settings of one saga. `stepped` are the nodes that a step has started while the saga is paused: they may be dispatched."""

    paused: bool = False
    pause_reason: str = ""
    steps: int = 0
    stepped: frozenset[int] = frozenset()
    breakpoints: frozenset[tuple[NodePath, bool]] = frozenset()
    """Nodes, and whether it stands after them."""
    max_in_flight: int = 0
    errors: frozenset[tuple[NodePath, Phase]] = frozenset()
    repeats: dict[tuple[NodePath, Phase], int] = field(default_factory=dict)

    def may_dispatch(self, index: int) -> bool:
        """Whether a node that is in flight may be called (again) now."""
        return not self.paused or index in self.stepped

    def has_room(self, in_flight: int) -> bool:
        """Whether another node may be started beside so many."""
        return not self.max_in_flight or in_flight < self.max_in_flight

    def ordered(self, command: Command) -> "Controls":
        """The settings after a command that was not refused."""
        match command:
            case Pause(reason):
                return replace(self, paused=True, pause_reason=reason)
            case Resume() | Abort():
                return replace(self, paused=False, pause_reason="", steps=0, stepped=frozenset())
            case Step():
                return replace(self, steps=self.steps + 1)
            case SetBreakpoint(node, after, clear):
                point = frozenset({(node, after)})
                return replace(self, breakpoints=self.breakpoints - point if clear else self.breakpoints | point)
            case SetMaxInFlight(limit):
                return replace(self, max_in_flight=limit)
            case InjectError(node, phase):
                return replace(self, errors=self.errors | {(node, phase)})
            case InjectRepeat(node, phase, count):
                return replace(self, repeats={**self.repeats, (node, phase): count})
            case RetryUndo() | SkipUndo() | MarkUndone() | Signal() | SetDeadline():
                return self
            case _:
                assert_never(command)

    def hit(self, node: NodePath, after: bool, reason: str) -> "Controls":
        """The settings after a breakpoint was reached."""
        return replace(self, paused=True, pause_reason=reason, breakpoints=self.breakpoints - {(node, after)})

    def started(self, index: int) -> "Controls":
        """The settings after a node was started: while the saga is paused, that uses up a step."""
        if not self.paused:
            return self
        return replace(self, steps=self.steps - 1, stepped=self.stepped | {index})

    def exempted(self, index: int) -> "Controls":
        """The settings after an operator had a single node started: a pause does not hold it."""
        return replace(self, stepped=self.stepped | {index}) if self.paused else self

    def answered(self, node: NodePath, phase: Phase) -> "Controls":
        """The settings after an answer: what was injected for this node and phase has been used up."""
        key = (node, phase)
        if key not in self.errors and key not in self.repeats:
            return self
        return replace(self, errors=self.errors - {key}, repeats={k: v for k, v in self.repeats.items() if k != key})

    def settled(self, index: int) -> "Controls":
        """The settings after an outcome: a step with this node is over."""
        return replace(self, stepped=self.stepped - {index}) if index in self.stepped else self


NO_CONTROLS = Controls()
"""Of most sagas. One for all of them."""
