"""The table at the head of `sec_client.kit.rules`, row by row."""

import pytest
from sec_client.kit.rules import Delivery, Entry, InDoubt, Mark, Repeat, Run, judge

DO = Delivery("k", "u", 1, undo=False)
UNDO = Delivery("k", "u", 1, undo=True)
UNDO_WITH_OUTPUT = Delivery("k", "u", 1, undo=True, has_output=True)
GONE = Entry(Mark.UNDONE)


@pytest.mark.parametrize(
    ("known", "delivery", "verdict", "stored"),
    [
        (None, DO, Run(first=True), Entry(Mark.BEGUN)),
        (Entry(Mark.BEGUN), DO, Run(), None),
        (Entry(Mark.DONE, b"o"), DO, Repeat(Entry(Mark.DONE, b"o")), None),
        (Entry(Mark.FAILED, b"f"), DO, Repeat(Entry(Mark.FAILED, b"f")), None),
        (Entry(Mark.UNDOING), DO, InDoubt(), None),
        (Entry(Mark.UNDO_FAILED), DO, InDoubt(), None),
        (GONE, DO, Repeat(GONE), None),
        (None, UNDO, Repeat(GONE), GONE),
        (None, UNDO_WITH_OUTPUT, Run(), Entry(Mark.UNDOING)),
        (Entry(Mark.BEGUN), UNDO, Run(), Entry(Mark.UNDOING)),
        (Entry(Mark.DONE, b"o"), UNDO, Run(b"o"), Entry(Mark.UNDOING, b"o")),
        (Entry(Mark.FAILED, b"f"), UNDO, Repeat(GONE), GONE),
        (Entry(Mark.UNDOING, b"o"), UNDO, Run(b"o"), None),
        (Entry(Mark.UNDO_FAILED, b"o"), UNDO, Run(b"o"), Entry(Mark.UNDOING, b"o")),
        (GONE, UNDO, Repeat(GONE), None),
        (GONE, UNDO_WITH_OUTPUT, Repeat(GONE), None),
    ],
)
def test_judge(known: Entry | None, delivery: Delivery, verdict: object, stored: Entry | None) -> None:
    assert judge(known, delivery) == (verdict, stored)
