"""What the tests of `sec dev` and of the examples share: which processes there are, and waiting for conditions."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

DEADLINE_S = 30.0
ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPTS = Path(sys.executable).parent


def environment(**more: str) -> dict[str, str]:
    """Ours, with the commands of the project found first, and nothing in it that says where a cluster is."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("SEC_", "DEMO_")) or name == "SEC_ETCD"}
    return {**ours, "PATH": f"{SCRIPTS}{os.pathsep}{os.environ.get('PATH', os.defpath)}", **more}


def until(condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Returns when the condition holds; it is asked again and again."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"after {deadline_s:g} s: {what}"
        time.sleep(0.02)


def descendants(pid: int) -> set[int]:
    """The children of a process, and theirs, as far as they run now."""
    children: dict[int, set[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), set()).add(int(entry.parent.name))
    found: set[int] = set()
    left = {pid}
    while left:
        left = set().union(*(children.get(one, set()) for one in left)) - found
        found |= left
    return found


def running(pid: int) -> bool:
    """The process is there, and not only as what its parent has not looked at yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def has_said(log: Path, text: str, process: subprocess.Popen[bytes]) -> bool:
    """The log has this text. Fails when the process that writes it has ended without saying it."""
    ended = process.poll() is not None
    said = log.read_text()
    assert text in said or not ended, f"it ended with status {process.returncode}:\n{said}"
    return text in said
