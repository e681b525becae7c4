"""Writes what docs/design.md and docs/semantics.md show of the transition tables, from the tables themselves (sec/core/transitions.py).

`make gen` writes it; `make check-gen` and tests/docs fail when a page is not what the tables say.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from sec.core.transitions import NODE_TRANSITIONS, SAGA_ACCEPTS, SETTLED, Mark

_DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = (_DOCS / "design.md", _DOCS / "semantics.md")


def record_name(record: type) -> str:
    """The name of a record's kind in the contract: `UndoStarted` is `undo_started`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", record.__name__).lower()


def node_diagram() -> str:
    """The marks of a node and the records that lead from one to the next, as a mermaid diagram."""
    lines = ["```mermaid", "stateDiagram-v2", "    direction LR", f"    [*] --> {Mark.NEVER_STARTED.value}"]
    arrows: dict[tuple[Mark, Mark], list[str]] = {}
    for (mark, record), target in NODE_TRANSITIONS.items():
        arrows.setdefault((mark, target), []).append(record_name(record))
    lines += [f"    {mark.value} --> {target.value}: {', '.join(records)}" for (mark, target), records in arrows.items()]
    lines.append(f"    {Mark.STARTED.value} --> {Mark.GIVEN_UP.value}: no record, the saga begins to unwind")
    lines += [f"    {mark.value} --> [*]" for mark in Mark if mark in SETTLED]
    return "\n".join([*lines, "```"])


def course_table() -> str:
    """Which records a saga takes on each course, as a table."""
    lines = ["| course | records it takes |", "|---|---|"]
    for course, records in SAGA_ACCEPTS.items():
        names = ", ".join(f"`{name}`" for name in sorted(record_name(r) for r in records))
        lines.append(f"| {course.value} | {names or 'none: it has ended'} |")
    return "\n".join(lines)


def updated(page: str) -> str:
    """The page with the generated parts as they should be. Raises `ValueError` when the page has no place for one."""
    for name, text in (("node diagram", node_diagram()), ("course table", course_table())):
        begin, end = f"<!-- generated: {name} -->", "<!-- end of generated -->"
        before, found, rest = page.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f'There is no place for the {name}: the page needs the lines "{begin}" and "{end}".')
        page = f"{before}{begin}\n{text}\n{end}{after}"
    return page


def main(arguments: Sequence[str] | None = None) -> int:
    """Answers 0; with --check 1 when a page has drifted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, and fail when a page is not up to date")
    options = parser.parse_args(arguments)
    drifted = False
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        wanted = updated(text)
        if wanted == text:
            continue
        if options.check:
            print(f'{page.name} does not show the transition tables as they are: run "make gen".', file=sys.stderr)
            drifted = True
        else:
            page.write_text(wanted, encoding="utf-8")
    return int(drifted)


if __name__ == "__main__":
    raise SystemExit(main())
