"""Every script in scripts/ says what the core does now, to the letter. `REWRITE_SCRIPTS=1` writes down what it does instead: read the diff."""

import os
from pathlib import Path

import pytest
from script_runner import replay

SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("*.txt"))


def test_there_are_scripts() -> None:
    assert SCRIPTS


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_script(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    now = replay(text)
    if os.environ.get("REWRITE_SCRIPTS") == "1":
        path.write_text(now, encoding="utf-8")
        return
    assert now == text


def test_an_output_that_differs_is_rewritten() -> None:
    assert replay("# Why.\n$ saga a\nwrong\n\nText.\n") == "# Why.\n$ saga a\ncreated:\n  a: queued\n\nText.\n"
