"""Runs what the documentation shows.

A fenced block is marked by what stands behind its language:

    ```python file=trip.py     is written to that file
    ```bash run                is run with `bash -eu`; ```python run with Python
    ```text output             has the lines, in this order, that the block before it must have printed ("…" stands for anything)

The marked blocks of a page are one scenario: they run one after the other in one empty folder, against one cluster. Blocks without a
mark are for reading only.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SHOWN_ADDRESS = "127.0.0.1:7450"
"""What stands in the pages for the address of an SEC node. The cluster of the tests listens elsewhere."""
TIMEOUT_S = 240.0
"""Of all snippets of a page, each of whose commands is a process of its own; a page has dozens."""

_FENCE = re.compile(r"^```(?P<info>\S[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def pages() -> list[Path]:
    """All pages of the documentation."""
    found = [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "deploy").rglob("*.md"),
        *(ROOT / "examples").glob("*/*.md"),
        *(ROOT / "examples").glob("*/*/*.md"),  # no deeper: there are the packages of other languages
    ]
    return sorted(found)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block. `mark` is what its info string says behind the language."""

    line: int
    language: str
    mark: str
    text: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page that name a language."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        language, _, mark = match["info"].partition(" ")
        found.append(Block(text.count("\n", 0, match.start()) + 1, language, mark.strip(), match["text"]))
    return found


def scenario(page: Path) -> list[Block]:
    """The marked blocks of a page. Raises `ValueError` for a mark that does not exist."""
    marked = [b for b in blocks(page) if b.mark]
    for block in marked:
        known = {"python": ("run",), "bash": ("run",), "text": ("output",)}.get(block.language, ())
        if block.mark not in known and not re.fullmatch(r"file=[\w.-]+", block.mark):
            raise ValueError(f'{page.name}, line {block.line}: a block of {block.language} cannot be marked "{block.mark}".')
    return marked


class SnippetFailed(AssertionError):
    """A block ended with an error, or did not print what the page says."""


def run_scenario(page: Path, folder: Path, addresses: Sequence[str]) -> None:
    """Runs the marked blocks of a page in an empty folder. Raises `SnippetFailed`."""
    script = ["set -eu"]
    expected: dict[int, Block] = {}
    number = 0
    for block in scenario(page):
        text = block.text.replace(SHOWN_ADDRESS, addresses[0])
        if block.mark.startswith("file="):
            (folder / block.mark.removeprefix("file=")).write_text(text, encoding="utf-8")
            continue
        if block.mark == "output":
            expected[number] = block
            continue
        number += 1
        script.append(f"echo '@@ {number} line {block.line}'")
        if block.language == "python":
            (folder / f"snippet_{number}.py").write_text(text, encoding="utf-8")
            script.append(f"python snippet_{number}.py")
        else:
            script.append(text)
    printed = _run("\n".join(script), folder, addresses)
    parts = re.split(r"^@@ (\d+) line \d+\n", printed, flags=re.MULTILINE)
    by_number = {int(parts[i]): parts[i + 1] for i in range(1, len(parts), 2)}
    for of_block, block in expected.items():
        missing = first_missing(block.text.splitlines(), by_number[of_block].splitlines())
        if missing is not None:
            raise SnippetFailed(
                f"{page.name}, line {block.line}: the line {missing!r} was not printed (in this order). "
                f"Printed was:\n{by_number[of_block]}"
            )


def first_missing(expected: Sequence[str], printed: Sequence[str]) -> str | None:
    """The first expected line that does not come, in order, among those printed; None when all do."""
    lines = iter(printed)
    for line in expected:
        pattern = re.compile(".*".join(re.escape(part) for part in line.rstrip().split("…")))
        if line.strip() and not any(pattern.fullmatch(other.rstrip()) for other in lines):
            return line
    return None


def _run(script: str, folder: Path, addresses: Sequence[str]) -> str:
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "SEC_ADDRESSES": ",".join(addresses),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "NO_COLOR": "1",
        "COLUMNS": "200",
    }
    log = folder / ".printed"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", script],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # so that what it leaves in the background can be ended with it
        )
        try:
            status: int | None = process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    printed = log.read_text(encoding="utf-8", errors="replace")
    if status != 0:
        ended = f"ended with exit code {status}" if status is not None else f"did not end within {TIMEOUT_S:g} s"
        raise SnippetFailed(f"The snippets of the page {ended}. They printed:\n{printed}")
    return printed
