"""Shows that a chaos run finds mistakes: breaks one rule of the node, of the store or of the action-server kit after the other, and runs each.

    python tools/chaos_bugs.py [--duration SECONDS] [--seed N] [WORDS ...]      only those whose description has one of the words

Each bug is a copy of the code in which one piece of text is replaced. It is *found* when a run says that an invariant does not hold. A run that comes before it
without a bug must find nothing. Exits with 1 when one is not found, and with 2 when one cannot be made, since the code has changed: then mend the list.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mutants import ROOT, Mutant

DURATION_S = 40
RATE_PER_S = 8
TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Bug:
    """A mistake, and the faults under which it shows."""

    mutant: Mutant
    faults: str


BUGS = [
    Bug(
        Mutant(
            "effects run before their records are durable",
            "sec/node/driver.py",
            "                self._host.append(self, ready, partial(self._append_has_ended, events, ready))\n",
            "                for effect in ready.effects:\n                    if isinstance(effect, Dispatch):\n                        self._run_effect(effect)\n"
            "                written = partial(self._append_has_ended, events, ready)\n"
            "                self._loop.call_later(0.02, self._host.append, self, ready, written)\n",
        ),
        "kill,failpoint,partition,oneway",
    ),
    Bug(
        Mutant(
            "appends are not fenced",
            "sec/store/sagas.py",
            "txn = Txn([self._owned(saga_id, epoch), absent(log_key)], then)",
            "txn = Txn([], then)",
        ),
        "stop,failpoint,partition,oneway",
    ),
    Bug(
        Mutant(
            "a new owner does not say that it has taken over",
            "sec/node/owner.py",
            "        driver.post(TakenOver(claimed.epoch, self._settings.name))\n",
            "        driver.post(Begin())\n",
        ),
        "kill,lease",
    ),
    Bug(
        Mutant(
            "an unknown outcome is taken as a failure",
            "sec/node/driver.py",
            "                self._answer_missing(in_flight, dispatch, error, spent_s)\n            case StaleEpoch",
            "                self._answered(in_flight, dispatch, error, spent_s)\n            case StaleEpoch",
        ),
        "servers,repeat",
    ),
    Bug(
        Mutant(
            "the kit has an effect again when its key comes again",
            "client/sec_client/kit/rules.py",
            "        case Mark.DONE | Mark.FAILED | Mark.UNDONE:\n            return Repeat(entry), None\n        case Mark.UNDOING",
            "        case Mark.FAILED | Mark.UNDONE:\n            return Repeat(entry), None\n        case Mark.DONE:\n            return Run(), None\n        case Mark.UNDOING",
        ),
        "repeat",
    ),
    Bug(
        Mutant(
            "the kit forgets an undo whose do has not come yet",
            "client/sec_client/kit/rules.py",
            "if delivery.has_output else (Repeat(gone), gone)",
            "if delivery.has_output else (Repeat(gone), None)",
        ),
        "repeat",
    ),
]


def main() -> int:
    parser = argparse.ArgumentParser(description="Breaks rules, and shows that a chaos run finds each.")
    parser.add_argument("--duration", type=int, default=DURATION_S)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("words", nargs="*")
    given = parser.parse_args()
    wanted = [bug for bug in BUGS if not given.words or any(word in bug.mutant.what for word in given.words)]
    stale = [bug.mutant for bug in wanted if not bug.mutant.fits()]
    for mutant in stale:
        print(f'The bug "{mutant.what}" cannot be made: its rule is not in {mutant.file}, or more than once.', file=sys.stderr)
    if stale or not wanted:
        return 2
    print(f"Chaos with {len(wanted)} bugs, {given.duration} s each, and before that with none:", flush=True)
    every = ",".join(dict.fromkeys(kind for bug in wanted for kind in bug.faults.split(",")))
    without = chaos(None, every, given.seed, given.duration)
    print(f"  {'none':55}{without or 'nothing found'}", flush=True)
    missed = 0
    for bug in wanted:
        found = chaos(bug.mutant, bug.faults, given.seed, given.duration)
        missed += not found
        print(f"  {bug.mutant.what:55}{found or 'NOT FOUND'}", flush=True)
    print(f"\n{len(wanted) - missed} of {len(wanted)} bugs found.")
    return 1 if missed or without else 0


def chaos(mutant: Mutant | None, faults: str, seed: int, duration_s: int) -> str:
    """How many violations a run has found, and the first of them. Empty: none."""
    with tempfile.TemporaryDirectory(prefix="sec-bug-") as folder:
        for part in ("sec", "client"):
            shutil.copytree(ROOT / part, Path(folder, part), ignore=shutil.ignore_patterns("__pycache__"))
        if mutant is not None:
            file = Path(folder, mutant.file)
            file.write_text(file.read_text(encoding="utf-8").replace(mutant.rule, mutant.mistake), encoding="utf-8")
        options = [f"--seed={seed}", f"--duration={duration_s}", f"--faults={faults}", f"--rate={RATE_PER_S}", "--settle=20"]
        paths = os.pathsep.join((folder, str(Path(folder, "client"))))
        done = subprocess.run(
            [sys.executable, "-m", "sec", "chaos", "run", *options, "--directory=run"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        told = Path(folder, "run", "violations.txt")
        if not told.exists():
            raise SystemExit(f"The run could not be made:\n{done.stdout}{done.stderr}")
        found = told.read_text(encoding="utf-8").splitlines()
        return f"{len(found)} violations: {found[0][:110]}" if found else ""


if __name__ == "__main__":
    raise SystemExit(main())
