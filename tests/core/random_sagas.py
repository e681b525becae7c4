"""Random saga definitions for Hypothesis."""

from hypothesis import strategies as st
from sec_model import Definition

from sec.sim.definitions import PALETTE, random_definition

MAX_NODES = 40
DEADLINES = st.sampled_from(PALETTE.deadlines)


@st.composite
def definitions(draw: st.DrawFn, max_nodes: int = MAX_NODES, *, plain: bool = False) -> Definition:
    """A valid definition of at most so many nodes, those of its subsagas included. A plain one has nothing that waits, and an undo action
    for every action.

    Half of them are drawn evenly, which makes larger ones than Hypothesis would; the others can be shrunk."""
    random = draw(st.randoms(use_true_random=False) | st.randoms(use_true_random=True))
    return random_definition(random, max_nodes, plain=plain)
