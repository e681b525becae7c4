"""What can go wrong in a run, as values: give them to `SagaTester.run`, or take them from `SagaTester.fault_points`. As text each is a sentence.

A fault of a call strikes the `call`-th call of its node, counted from 1 and apart for dos and undos; calls that are repeated count anew.
With `action` in place of `node` the calls of all nodes that call this action are counted together. `call=EVERY` strikes each.
"""

from dataclasses import dataclass, field
from typing import Final

from sec_model.versions import fits

EVERY: Final = 0
"""Each call, and not one of them."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of calls. The base of those that can be given."""

    node: str = ""
    """Full path of a node."""
    action: str = field(default="", kw_only=True)
    undo: bool = field(default=False, kw_only=True)
    """It strikes calls of the undo action."""
    call: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        if bool(self.node) == bool(self.action):
            raise ValueError(f"{type(self).__name__} strikes the calls of a node or of an action: name one of the two.")
        if self.call < 0:
            raise ValueError(f"Calls are counted from 1, and there is no call {self.call}.")

    def strikes(self, node: str, action: str, undo: bool, of_node: int, of_action: int) -> bool:
        """Whether this call, the so-manieth of its node and of its action, is struck."""
        if undo != self.undo or (self.node and node != self.node) or (self.action and not fits(self.action, action)):
            return False
        return self.call in (EVERY, of_node if self.node else of_action)

    @property
    def calls(self) -> str:
        """The calls, in words."""
        half = "undo" if self.undo else "do"
        which = f"each {half}" if self.call == EVERY else f"the {half}" if self.call == 1 else f"{half} {self.call}"
        return f"{which} of {self.node or f'the action {self.action}'}"


@dataclass(frozen=True, slots=True)
class Fail(Fault):
    """The call is answered with a failure, and the handler is not called. Of an undo: it cannot be done, for good, and the saga is stuck."""

    message: str = field(default="It does not work, says the test.", kw_only=True)
    code: str = field(default="test", kw_only=True)

    def __str__(self) -> str:
        return f"{self.calls} fails"


@dataclass(frozen=True, slots=True)
class LoseAnswer(Fault):
    """The call has its effect, and its answer is lost: nobody knows of the effect."""

    def __str__(self) -> str:
        return f"the answer to {self.calls} is lost"


@dataclass(frozen=True, slots=True)
class LoseCall(Fault):
    """The call never arrives, which nobody can tell from a lost answer."""

    def __str__(self) -> str:
        return f"{self.calls} never arrives"


@dataclass(frozen=True, slots=True)
class Die(Fault):
    """The action server dies as its handler returns: effects in `call.db` are rolled back, and all others are there, but nothing says so. The call is repeated, and so is the
    handler, which has to see to it that there is one effect. With `before` it dies when the handler is about to begin: it may have had an effect, as far as anybody knows."""

    before: bool = field(default=False, kw_only=True)

    def __str__(self) -> str:
        return f"the action server dies {'before' if self.before else 'after'} {self.calls}"


@dataclass(frozen=True, slots=True)
class Delay(Fault):
    """The call arrives late, by `by_s`. By then another may have been made in its place; it takes effect, or not, when it arrives."""

    by_s: float = field(default=5.0, kw_only=True)

    def __str__(self) -> str:
        return f"{self.calls} arrives {self.by_s:g} s late"


@dataclass(frozen=True, slots=True)
class Repeat(Fault):
    """The call is delivered twice: the second time `after_s` after the first has been answered (0: at the same time)."""

    after_s: float = field(default=0.0, kw_only=True)

    def __str__(self) -> str:
        when = f"again {self.after_s:g} s later" if self.after_s else "twice at once"
        return f"{self.calls} is delivered {when}"


@dataclass(frozen=True, slots=True)
class Straggle(Fault):
    """A copy of the call is held up on its way until the saga has settled, and arrives then: behind the undo, if there is one."""

    def __str__(self) -> str:
        return f"a copy of {self.calls} arrives when all is over"


@dataclass(frozen=True, slots=True)
class Away(Fault):
    """The action server is away from this call on, which is lost, for `for_s`."""

    for_s: float = field(default=60.0, kw_only=True)

    def __str__(self) -> str:
        return f"the action server goes away at {self.calls}, for {self.for_s:g} s"


@dataclass(frozen=True, slots=True)
class Crash:
    """The SEC node that owns the saga dies, and another one takes over: just behind the `write`-th write to the saga's log, or with `before` when it is
    on its way and will not arrive. Records that are written together are there together, or not at all.

    In place of a number, `Crash(record="started", node="payment")` means the first write with such a record; the names are those of `SagaRun.log`.
    """

    write: int = 0
    before: bool = field(default=False, kw_only=True)
    record: str = field(default="", kw_only=True)
    node: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        if (self.write > 0) == bool(self.record):
            raise ValueError("Crash needs the number of a write, from 1 on, or the kind of a record: one of the two.")

    def strikes(self, write: int, records: list[tuple[str, str]]) -> bool:
        """Whether it strikes this write, of these records: kinds and nodes."""
        if self.write:
            return write == self.write
        return any(kind == self.record and self.node in ("", node) for kind, node in records)

    def __str__(self) -> str:
        what = f"write {self.write}" if self.write else f'the record "{self.record}"' + (f" of {self.node}" if self.node else "")
        return f"the owner dies {'before' if self.before else 'after'} {what}"


AnyFault = Fault | Crash


def told(faults: tuple[AnyFault, ...]) -> str:
    """Faults, as a sentence without its end."""
    return " and ".join(str(fault) for fault in faults) or "nothing goes wrong"


@dataclass(slots=True)
class Made:
    """A call that an SEC node has made of an action server, and what came of it."""

    saga_id: str
    node: str
    action: str
    undo: bool
    attempt: int
    """As the call says it, counted from 1; a new owner goes on counting."""
    key: str
    """The idempotency key."""
    epoch: int
    sec_node: str
    at_s: float
    """When, in seconds of virtual time since the tester was made."""
    faults: tuple[AnyFault, ...] = ()
    """What was scripted for it."""
    deliveries: list[str] = field(default_factory=list)
    """What the action server answered, for each time that the call arrived: "output", "done" (of an undo), "failure", or the name of a gRPC status."""
    answer: str = ""
    """What the SEC node heard: one of the same words, or "nothing"."""

    def __str__(self) -> str:
        half = "undo" if self.undo else "do"
        arrived = ", ".join(self.deliveries) or "did not arrive"
        text = f"{self.at_s:9.3f}  {half:4} {self.node} ({self.action}), attempt {self.attempt}, from {self.sec_node}: {arrived}"
        if [self.answer] != self.deliveries:
            text += f"; heard: {self.answer or 'nothing yet'}"
        return text + (f"  [{told(self.faults)}]" if self.faults else "")
