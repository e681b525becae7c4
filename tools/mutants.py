"""Shows that the random machine of tests/core finds mistakes: breaks one rule of the core after the other, and runs it against each.

    python tools/mutants.py [WORDS ...]      only those whose description has one of the words

Each mutant is a copy of the core in which one piece of text is replaced. It is *killed* when the machine (random sagas, outcomes, orders, losses,
crashes, and recovery from every prefix of the log: tests/core/test_core_random_sagas.py) fails with it, for one of the first `SEEDS` seeds: what needs
three rare things at once is not in every thousand sagas, and which ones a seed draws changes with Hypothesis and with the code. Exits with 1 when one
survives, and with 2 when one cannot be made, since the code has changed: then mend the list.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MACHINE = "tests/core/test_core_random_sagas.py"
SEEDS = 16
"""Tried one after the other until one kills the mutant."""
TIMEOUT_S = 600.0
"""Of one run: a saga that never ends is a kill too."""


@dataclass(frozen=True)
class Mutant:
    """In `file` the text `rule`, which is there once, becomes `mistake`."""

    what: str
    file: str
    rule: str
    mistake: str

    def fits(self) -> bool:
        """Whether the rule stands in the code, once."""
        return (ROOT / self.file).read_text(encoding="utf-8").count(self.rule) == 1


MUTANTS = [
    # the transition table
    Mutant(
        "an unknown outcome counts as a failure",
        "sec/core/transitions.py",
        "(Mark.STARTED, OutcomeUnknown): Mark.OUTCOME_UNKNOWN",
        "(Mark.STARTED, OutcomeUnknown): Mark.FAILED",
    ),
    Mutant(
        "a failure counts as an unknown outcome",
        "sec/core/transitions.py",
        "(Mark.STARTED, Failed): Mark.FAILED",
        "(Mark.STARTED, Failed): Mark.OUTCOME_UNKNOWN",
    ),
    Mutant(
        "an undo that failed counts as done",
        "sec/core/transitions.py",
        "(Mark.UNDO_STARTED, UndoFailed): Mark.UNDO_FAILED",
        "(Mark.UNDO_STARTED, UndoFailed): Mark.UNDO_FINISHED",
    ),
    Mutant(
        "an unknown outcome cannot be undone",
        "sec/core/transitions.py",
        "    (Mark.OUTCOME_UNKNOWN, UndoStarted): Mark.UNDO_STARTED,\n",
        "",
    ),
    Mutant(
        "an undo whose call was lost is over",
        "sec/core/transitions.py",
        "(Mark.UNDO_STARTED, AttemptUnknown): Mark.UNDO_STARTED",
        "(Mark.UNDO_STARTED, AttemptUnknown): Mark.UNDO_FINISHED",
    ),
    Mutant(
        "a failed undo cannot be tried again",
        "sec/core/transitions.py",
        "    (Mark.UNDO_FAILED, UndoStarted): Mark.UNDO_STARTED,\n",
        "",
    ),
    Mutant(
        "a node that failed is not settled",
        "sec/core/transitions.py",
        "SETTLED = frozenset({Mark.FAILED, ",
        "SETTLED = frozenset({",
    ),
    # what a record needs
    Mutant(
        "a join starts with its first parent",
        "sec/core/state.py",
        "                if left == 0:\n",
        "                if left >= 0:\n",
    ),
    Mutant(
        "parents are undone before their children",
        "sec/core/state.py",
        "        return mark is Mark.NEVER_STARTED or mark in SETTLED\n",
        "        return True\n",
    ),
    Mutant(
        "a saga is undone while a node is in flight",
        "sec/core/state.py",
        "self.course is Course.UNWINDING and self._unsettled == 0",
        "self.course is Course.UNWINDING and not self.undoable",
    ),
    Mutant(
        "a stuck saga goes on by itself",
        "sec/core/state.py",
        "        if self.course is Course.UNWINDING and self.undo_failed:\n            return Course.STUCK\n",
        "",
    ),
    Mutant(
        "a signal is waited for although the saga unwinds",
        "sec/core/state.py",
        "            self._put(self.marks, index, Mark.GIVEN_UP)\n",
        "",
    ),
    Mutant(
        "deadlines go on while the saga unwinds",
        "sec/core/state.py",
        "        for path in list(self.dues):\n            self._drop(self.dues, path)\n",
        "",
    ),
    Mutant(
        "a point of no return in flight can be unwound",
        "sec/core/state.py",
        "if marks[i] in (Mark.STARTED, Mark.SUCCEEDED)), None)",
        "if marks[i] is Mark.SUCCEEDED), None)",
    ),
    Mutant(
        "what failed is tried again under the same key",
        "sec/core/state.py",
        "            self._put(self.failures, index, self.failures.get(index, 0) + 1)\n".replace(
            "            ", "                ", 1
        ),
        "",
    ),
    Mutant(
        "a saga calls the newest version, whatever it is pinned to",
        "sec/core/state.py",
        "        self._put(self.pins, record.action, record.offer)\n",
        "        self._put(self.pins, record.action, record.action)\n",
    ),
    Mutant(
        "a saga is pinned anew after it was called without a version",
        "sec/core/state.py",
        "            if asked not in self.pins:  # it",
        "            if False:  # it",
    ),
    Mutant(
        "a saga that is pinned takes another version when its own is gone",
        "sec/core/state.py",
        "if pinned is None else pinned if pinned in offered else None",
        "if pinned not in offered else pinned",
    ),
    Mutant(
        "versions are compared as text",
        "client/sec_model/versions.py",
        'tuple(map(int, found["version"].split(".")))',
        'tuple(found["version"].split("."))',
    ),
    Mutant(
        "nobody has to confirm",
        "sec/core/state.py",
        "if self.graph.confirmed:",
        "if False:",
    ),
    Mutant(
        "an injected error is never used up",
        "sec/core/controls.py",
        "return replace(self, errors=self.errors - {key}, ",
        "return replace(self, errors=self.errors, ",
    ),
    Mutant(
        "an abort leaves the saga paused",
        "sec/core/controls.py",
        "            case Resume() | Abort():\n",
        "            case Abort():\n                return self\n            case Resume():\n",
    ),
    # what follows from an event
    Mutant(
        "a new owner leaves what was in flight alone",
        "sec/core/decide.py",
        "                    else:\n                        self._dispatch(index)\n",
        "",
    ),
    Mutant(
        "an undo is not waited for before an operator is asked",
        "sec/core/decide.py",
        "if not state.in_flight and len(by_hand)",
        "if len(by_hand)",
    ),
    Mutant(
        "breakpoints are passed by",
        "sec/core/decide.py",
        "            if (path, False) in state.controls.breakpoints:\n",
        "            if False:\n",
    ),
    Mutant(
        "a limit is not kept",
        "sec/core/decide.py",
        "room = node.waits or controls.has_room(len(self.state.in_flight))",
        "room = True",
    ),
    Mutant(
        "a paused saga starts nodes",
        "sec/core/decide.py",
        "return room and (not controls.paused or controls.steps > 0)",
        "return room",
    ),
    Mutant(
        "a pause lets retries go on",
        "sec/core/decide.py",
        "            case Pause():\n                self._withhold()\n",
        "            case Pause():\n                pass\n",
    ),
    Mutant(
        "a resume forgets what was withheld",
        "sec/core/decide.py",
        "sorted(state.in_flight.keys() - state.expired.keys())",
        "()",
    ),
    Mutant(
        "the same command is taken up twice",
        "sec/core/decide.py",
        "        if event.command_id in state.commands:\n            return\n",
        "",
    ),
    Mutant("every command makes sense", "sec/core/decide.py", "because = refusal(state, command)", 'because = ""'),
    Mutant(
        "what was withheld is forgotten when the saga unwinds",
        "sec/core/decide.py",
        "            if self.was_running:\n                self._hurry()\n",
        "",
    ),
    Mutant(
        "behind the point of no return a failure is one",
        "sec/core/decide.py",
        "elif self._is_forward_only(event.node):",
        "elif False:",
    ),
    Mutant(
        "what cannot be undone is given up",
        "sec/core/decide.py",
        "if phase is _DO and self.state.graph.nodes[index].never_given_up:",
        "if False:",
    ),
    Mutant(
        "a signal that came early is not looked for",
        "sec/core/decide.py",
        "            if index in state.signals:\n                self._succeed(path, state.signals[index])\n                return True\n",
        "",
    ),
    Mutant(
        "a signal is waited for behind its deadline",
        "sec/core/decide.py",
        "            elif index in state.expired:\n                self._write(Failed(",
        "            elif False:\n                self._write(Failed(",
    ),
    Mutant(
        "a new owner calls what has expired",
        "sec/core/decide.py",
        "                    if index in self.state.expired:\n                        self._write(",
        "                    if False:\n                        self._write(",
    ),
    Mutant("timers end at once", "sec/core/decide.py", "due_us <= self.now_us:\n", "due_us:\n"),
    Mutant(
        "the clock is not looked at",
        "sec/core/decide.py",
        "if due.us <= self.now_us)",
        "if False)",
    ),
    Mutant(
        "nothing is needed to undo what has an undo action",
        "client/sec_model/graph.py",
        '("needs_no_undo", undo is None or undo is UndoPolicy.NONE_NEEDED)',
        '("needs_no_undo", True)',
    ),
]


def main(words: Sequence[str]) -> int:
    wanted = [m for m in MUTANTS if not words or any(word in m.what for word in words)]
    stale = [m for m in wanted if not m.fits()]
    for mutant in stale:
        print(f'The mutant "{mutant.what}" cannot be made: its rule is not in {mutant.file}, or more than once.', file=sys.stderr)
    if stale or not wanted:
        return 2
    print(f"Running {MACHINE} against {len(wanted)} mutants of the core. Without one it must pass:", flush=True)
    whole = run(None, seed=0)
    print(f"  {'no mutant':58}{whole or 'passes'}", flush=True)
    if whole:
        return 2
    survivors = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for mutant, killed_by in zip(wanted, pool.map(hunt, wanted), strict=True):
            survivors += not killed_by
            print(f"  {mutant.what:58}{'killed ' + killed_by if killed_by else 'SURVIVED'}", flush=True)
    print(f"\n{len(wanted) - survivors} of {len(wanted)} mutants killed.")
    return 1 if survivors else 0


def hunt(mutant: Mutant) -> str:
    """How the machine fails with a mutant, and for which seed. Empty: for none."""
    for seed in range(SEEDS):
        if killed_by := run(mutant, seed):
            return f"by seed {seed}: {killed_by}"
    return ""


def run(mutant: Mutant | None, seed: int) -> str:
    """How the machine fails with a mutant. Empty: it does not."""
    with tempfile.TemporaryDirectory(prefix="sec-mutant-") as folder:
        for package in ("sec", "client/sec_model"):
            shutil.copytree(ROOT / package, Path(folder, package), ignore=shutil.ignore_patterns("__pycache__"))
        if mutant is not None:
            file = Path(folder, mutant.file)
            file.write_text(file.read_text(encoding="utf-8").replace(mutant.rule, mutant.mistake), encoding="utf-8")
        path = os.pathsep.join([folder, str(Path(folder, "client"))])
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--tb=line"]
        command += ["--hypothesis-profile=no-shrinking", f"--hypothesis-seed={seed}", MACHINE]
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONSAFEPATH": "1"}
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return "it does not come to an end"
        if done.returncode not in (0, 1):
            raise SystemExit(f"The tests could not be run:\n{done.stdout}{done.stderr}")
        return "" if done.returncode == 0 else reason(done.stdout)


def reason(output: str) -> str:
    """The error that a failed run ends with."""
    lines = re.findall(r"^(?:E  +|/\S+:\d+: )(.+)$", output, re.MULTILINE)
    return (lines[-1] if lines else "it fails")[:110]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
