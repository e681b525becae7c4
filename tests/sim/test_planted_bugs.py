"""The mistakes that are planted to try the tests with can be made: each finds the rule that it breaks, and leaves code that can be read."""

import ast
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

import chaos_bugs  # noqa: E402
import mutants  # noqa: E402
import sim_bugs  # noqa: E402

PLANTED = [*mutants.MUTANTS, *sim_bugs.BUGS, *(bug.mutant for bug in chaos_bugs.BUGS)]


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.what)
def test_a_planted_mistake_fits_the_code(planted: mutants.Mutant) -> None:
    assert planted.fits()
    code = (mutants.ROOT / planted.file).read_text(encoding="utf-8")
    ast.parse(code.replace(planted.rule, planted.mistake))
