"""What a delivery of a call means, given what is known of its idempotency key. Pure: every store applies these rules.

    known        a do                          an undo
    nothing      run it                        nothing to undo: remember that, so that a later do is refused
    begun        run it again                  run the undo, output not known
    done         answer its output again       run the undo with that output
    failed       answer its failure again      nothing to undo
    undoing      refuse: in doubt              run the undo again
    undo-failed  refuse: in doubt              run the undo again (an operator repeats it)
    undone       answer failure "undone"       nothing to undo

An undo that brings the output of its do, of which nothing is known here, is run all the same: the do took effect, and its mark was lost or is in
the store of another server.
"""

from enum import StrEnum

from msgspec import Struct


class Mark(StrEnum):
    """What is known of an idempotency key. `BEGUN` and `UNDOING`: the handler was called, how it ended is not known."""

    BEGUN = "begun"
    DONE = "done"
    FAILED = "failed"
    UNDOING = "undoing"
    UNDO_FAILED = "undo-failed"
    UNDONE = "undone"


class Entry(Struct, frozen=True, gc=False):
    """A mark with its answer, as bytes of a message of the contract.

    The answer of `FAILED` is its failure. That of any other mark is the output of the do; None where that is not known.
    """

    mark: Mark
    answer: bytes | None = None


class Delivery(Struct, frozen=True, gc=False):
    """The part of a call that the rules look at. `has_output`: an undo that says what its do answered."""

    key: str
    saga_uid: str
    epoch: int
    undo: bool
    has_output: bool = False


class Run(Struct, frozen=True, gc=False):
    """Call the handler; `output` is what the do answered, as far as the store knows. `first`: no handler was ever called with this key."""

    output: bytes | None = None
    first: bool = False


class Repeat(Struct, frozen=True, gc=False):
    """Answer what was answered before, or what follows from it: the handler is not called."""

    entry: Entry


class InDoubt(Struct, frozen=True, gc=False):
    """A do whose undo has begun and has not finished. Whether anything of the effect is left is not known."""


class Stale(Struct, frozen=True, gc=False):
    """The caller has been replaced: an owner with this higher epoch has called."""

    highest_epoch: int


Verdict = Run | Repeat | InDoubt | Stale


_FIRST = Run(first=True), Entry(Mark.BEGUN)


def judge(entry: Entry | None, delivery: Delivery) -> tuple[Verdict, Entry | None]:
    """The verdict for a delivery whose epoch is not stale, and the entry to be made durable before it is carried out (None: as it is)."""
    return _judge_undo(entry, delivery) if delivery.undo else _judge_do(entry)


def _judge_do(entry: Entry | None) -> tuple[Verdict, Entry | None]:
    if entry is None:
        return _FIRST
    match entry.mark:
        case Mark.BEGUN:
            return Run(), None
        case Mark.DONE | Mark.FAILED | Mark.UNDONE:
            return Repeat(entry), None
        case Mark.UNDOING | Mark.UNDO_FAILED:
            return InDoubt(), None


def _judge_undo(entry: Entry | None, delivery: Delivery) -> tuple[Verdict, Entry | None]:
    gone = Entry(Mark.UNDONE)
    if entry is None:
        return (Run(), Entry(Mark.UNDOING)) if delivery.has_output else (Repeat(gone), gone)
    match entry.mark:
        case Mark.FAILED:
            return Repeat(gone), gone
        case Mark.UNDONE:
            return Repeat(entry), None
        case Mark.BEGUN | Mark.DONE | Mark.UNDO_FAILED:
            return Run(entry.answer), Entry(Mark.UNDOING, entry.answer)
        case Mark.UNDOING:
            return Run(entry.answer), None
