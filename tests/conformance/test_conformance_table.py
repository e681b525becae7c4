"""The table of `make conformance`: every row is in it, and nothing that failed or is missing looks like a pass."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from conformance_rows import ROWS, SECTIONS

TOOL = Path(__file__).resolve().parent.parent.parent / "tools" / "conformance.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("conformance_tool", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EVERYTHING = {(row.name, level): True for row in ROWS.values() for level in row.levels}


def line(text: str, row: str) -> list[str]:
    (found,) = [line for line in text.splitlines() if line.strip().startswith(row + " ")]
    return found.strip().removeprefix(row).split()


def test_every_name_is_there_once() -> None:
    assert len(ROWS) == sum(len(rows) for rows in SECTIONS.values())


def test_all_pass(tool: ModuleType) -> None:
    text = tool.table(EVERYTHING)
    assert all(f"  {name} " in text for name in ROWS)
    assert line(text, "run") == ["pass", "pass"]
    assert line(text, "list is paged") == ["—", "pass"]
    assert text.splitlines()[-1] == f"{len(ROWS)} rows: {len(EVERYTHING)} passed, 0 failed, 0 without a test"
    assert tool.exit_code(EVERYTHING, strict=True) == 0


def test_one_fails(tool: ModuleType) -> None:
    outcomes = EVERYTHING | {("run", "cluster"): False}
    assert line(tool.table(outcomes), "run") == ["pass", "FAIL"]
    assert tool.exit_code(outcomes, strict=False) == 1


def test_one_is_missing(tool: ModuleType) -> None:
    outcomes = {key: value for key, value in EVERYTHING.items() if key != ("run", "core")}
    assert line(tool.table(outcomes), "run") == ["missing", "pass"]
    assert tool.exit_code(outcomes, strict=False) == 0
    assert tool.exit_code(outcomes, strict=True) == 1


def report(when: str, outcome: str, row: str = "run") -> pytest.TestReport:
    properties: list[tuple[str, object]] = [("conformance", f"{row}@core")]
    return pytest.TestReport("a", ("a", 1, "a"), {}, outcome, None, when, user_properties=properties)  # type: ignore[arg-type] # words of pytest


@pytest.mark.parametrize(
    ("reports", "passed"),
    [
        ([("setup", "passed"), ("call", "passed"), ("teardown", "passed")], True),
        ([("setup", "passed"), ("call", "failed"), ("teardown", "passed")], False),
        ([("setup", "passed"), ("call", "failed"), ("call", "passed")], False),
        ([("setup", "failed")], False),
        ([("setup", "skipped")], False),
        ([("call", "passed"), ("teardown", "failed")], False),
    ],
)
def test_a_row_passes_when_all_of_its_tests_do(tool: ModuleType, reports: list[tuple[str, str]], passed: bool) -> None:
    collector = tool.Collector()
    for when, outcome in reports:
        collector.pytest_runtest_logreport(report(when, outcome))
    assert collector.outcomes == {("run", "core"): passed}
