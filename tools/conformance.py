"""Runs every row of the conformance table, at the core and at a real cluster, and prints the table. `make conformance` runs it.

    python tools/conformance.py [--strict] [arguments of pytest]

Exits with 1 when a row fails, and with --strict also when one has no test; with 2 when the tests could not be run.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "conformance"
sys.path.insert(0, str(FOLDER))

from conformance_rows import BOTH, SECTIONS, Row  # noqa: E402 # it stands beside the tests

PASS, FAIL, MISSING, NOT_HERE = "pass", "FAIL", "missing", "—"
Outcomes = Mapping[tuple[str, str], bool]
"""By row and level: whether all of its tests have passed."""


class Collector:
    """Collects how the tests of each row ended. A test that is skipped, or ended in an error around it, has not passed."""

    def __init__(self) -> None:
        self.outcomes: dict[tuple[str, str], bool] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return  # what stands before and behind a test only counts when it goes wrong
        for name, value in report.user_properties:
            if name == "conformance":
                row, level = str(value).rsplit("@", 1)
                self.outcomes[row, level] = self.outcomes.get((row, level), True) and report.passed


def verdict(row: Row, level: str, outcomes: Outcomes) -> str:
    """What the table says of a row at a level."""
    if level not in row.levels:
        return NOT_HERE
    passed = outcomes.get((row.name, level))
    return MISSING if passed is None else PASS if passed else FAIL


def table(outcomes: Outcomes) -> str:
    """Every row with its verdicts, and a count below."""
    width = max(len(row.name) for rows in SECTIONS.values() for row in rows) + 2
    lines = [f"{'':{width}}  {'core':8}{'cluster'}"]
    counts: dict[str, int] = {}
    for title, rows in SECTIONS.items():
        lines += ["", title]
        for row in rows:
            verdicts = [verdict(row, level, outcomes) for level in BOTH]
            lines.append(f"  {row.name:{width}}{verdicts[0]:8}{verdicts[1]}")
            for each in verdicts:
                counts[each] = counts.get(each, 0) + 1
    total = sum(len(rows) for rows in SECTIONS.values())
    told = f"{counts.get(PASS, 0)} passed, {counts.get(FAIL, 0)} failed, {counts.get(MISSING, 0)} without a test"
    return "\n".join([*lines, "", f"{total} rows: {told}"])


def exit_code(outcomes: Outcomes, *, strict: bool) -> int:
    """0 when the table is as it should be."""
    verdicts = {verdict(row, level, outcomes) for rows in SECTIONS.values() for row in rows for level in BOTH}
    return 1 if FAIL in verdicts or (strict and MISSING in verdicts) else 0


def main(arguments: Sequence[str]) -> int:
    """Runs the tests, prints the table."""
    strict = "--strict" in arguments
    collector = Collector()
    given = [argument for argument in arguments if argument != "--strict"]
    ended = pytest.main([str(FOLDER), "-m", "conformance", "-q", *given], plugins=[collector])
    if collector.outcomes:
        print(f"\n{table(collector.outcomes)}")
    if ended not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        print("The tests could not be run to their end: see above.", file=sys.stderr)
        return 2
    return exit_code(collector.outcomes, strict=strict)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
