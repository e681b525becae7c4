"""Shows that the simulator finds mistakes in what is around the core: breaks one rule of the store or the node after the other, and simulates each.

    python tools/sim_bugs.py [--seeds N] [WORDS ...]      only those whose description has one of the words

Each bug is a copy of `sec` in which one piece of text is replaced. It is *found* when a seed fails: that seed and what it violates are
printed. Exits with 1 when one is not found within N seeds, and with 2 when one cannot be made, since the code has changed: then mend the list.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mutants import ROOT, Mutant

SEEDS = 2000
TIMEOUT_S = 900.0

BUGS = [
    Mutant(
        "appends do not compare the epoch",
        "sec/store/sagas.py",
        "txn = Txn([self._owned(saga_id, epoch), absent(log_key)], then)",
        "txn = Txn([absent(log_key)], then)",
    ),
    Mutant(
        "appends do not ask that the log key is absent",
        "sec/store/sagas.py",
        "txn = Txn([self._owned(saga_id, epoch), absent(log_key)], then)",
        "txn = Txn([self._owned(saga_id, epoch)], then)",
    ),
    Mutant(
        "a write whose answer was lost is taken as done",
        "sec/store/commit.py",
        "        except KvError as error:\n            _fail(bundle, error)\n",
        "        except KvError:\n            done = TxnResult(True, 0, ())\n            [w.take(done) for w in bundle]\n",
    ),
    Mutant(
        "a claim takes a saga that has an owner",
        "sec/store/sagas.py",
        "txn = Txn([absent(keys.owner(saga_id)), exists(keys.active(saga_id))], [*reads, put], [Get(keys.owner(saga_id))])",
        "txn = Txn([exists(keys.active(saga_id))], [*reads, put], [Get(keys.owner(saga_id))])",
    ),
    Mutant(
        "giving up a saga does not compare the epoch",
        "sec/store/sagas.py",
        "Txn([self._owned(saga_id, epoch)], [Delete(self._keys.owner(saga_id))])",
        "Txn([], [Delete(self._keys.owner(saga_id))])",
    ),
    Mutant(
        "effects run before their records are durable",
        "sec/node/driver.py",
        '            if ready.records:\n                failpoints.reach("before_commit")\n',
        "            early = [e for e in ready.effects if isinstance(e, Dispatch)]\n            for effect in early:\n                self._run_effect(effect)\n"
        '            if ready.records:\n                failpoints.reach("before_commit")\n',
    ),
    Mutant(
        "the session's deadline counts from after the renewal",
        "sec/store/session.py",
        "self._deadline = max(self._deadline, sent + ttl_s - self._margin_s)",
        "self._deadline = self._loop.time() + ttl_s + self._margin_s",
    ),
    Mutant(
        "a lost session leaves the sagas with their owner",
        "sec/node/owner.py",
        "        for driver in drivers.values():\n            driver.shut()\n        if drivers:\n",
        "        self.drivers = drivers\n        if drivers:\n",
    ),
    Mutant(
        "a new owner does not say that it has taken over",
        "sec/node/owner.py",
        "        driver.post(TakenOver(claimed.epoch, self._settings.name))\n",
        "        driver.post(Begin())\n",
    ),
    Mutant(
        "a command is removed without its record",
        "sec/node/owner.py",
        "        if ordered.command_id in driver.state.commands:  # sent once more while it was being taken up\n",
        "        driver.post(ordered)\n        if True:\n",
    ),
    Mutant(
        "a mirror forgets the changes while it was cut off",
        "sec/store/mirror.py",
        "                await self._follow(Revision(revision + 1))\n",
        "                await self._follow(Revision(revision + 2))\n",
    ),
    Mutant(
        "a mirror that fell behind keeps what is gone",
        "sec/store/mirror.py",
        "changes = [Change(key, old, None) for key, old in self.items.items() if key not in fresh]",
        "changes: list[Change] = []\n        fresh = {**self.items, **fresh}",
    ),
    Mutant(
        "an append that was fenced is tried again without the fence",
        "sec/store/sagas.py",
        "        present = _only(result.results[0])\n        if present is not None and present.value == batch:",
        "        again = await self._commit(saga_id, Txn([absent(log_key)], txn.then), give_up, wanted)\n        if again.succeeded:\n            return\n"
        "        present = _only(result.results[0])\n        if present is not None and present.value == batch:",
    ),
    Mutant(
        "an owner that was fenced goes on with the epoch of the next one",
        "sec/store/sagas.py",
        '        raise Fenced(\n            f\'Saga "{saga_id}" is no longer owned by SEC node "{self._sec_node}" in epoch {epoch}: {_owner_text(result.results[1])}.\'\n',
        "        now = _only(result.results[1])\n        if now is not None and present is None:\n            taken = self._owned(saga_id, Epoch(now.create_revision))\n"
        "            await self._commit(saga_id, Txn([taken, absent(log_key)], txn.then), give_up, wanted)\n            return\n"
        '        raise Fenced(\n            f\'Saga "{saga_id}" is no longer owned by SEC node "{self._sec_node}" in epoch {epoch}: {_owner_text(result.results[1])}.\'\n',
    ),
    Mutant(
        "a node dispatches past the deadline of its session",
        "sec/store/session.py",
        "        self._deadline = granted_since + ttl_s - margin_s\n",
        "        self._deadline = granted_since + 3600.0\n",
    ),
    Mutant(
        "actions are called as the definition asks for them",
        "sec/node/driver.py",
        "            action=state.pins[node.action.action],\n",
        "            action=node.action.action,\n",
    ),
    Mutant(
        "an unknown outcome is taken as a failure",
        "sec/node/driver.py",
        "                self._answer_missing(in_flight, dispatch, error, spent_s)\n            case StaleEpoch",
        "                self._answered(in_flight, dispatch, error, spent_s)\n            case StaleEpoch",
    ),
]


def main() -> int:
    parser = argparse.ArgumentParser(description="Breaks rules, and shows that the simulator finds each.")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("words", nargs="*")
    given = parser.parse_args()
    wanted = [bug for bug in BUGS if not given.words or any(word in bug.what for word in given.words)]
    stale = [bug for bug in wanted if not bug.fits()]
    for bug in stale:
        print(f'The bug "{bug.what}" cannot be made: its rule is not in {bug.file}, or more than once.', file=sys.stderr)
    if stale or not wanted:
        return 2
    print(f"Simulating {len(wanted)} bugs, each with at most {given.seeds} seeds:", flush=True)
    missed = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for bug, found in zip(wanted, pool.map(lambda bug: simulate(bug, given.seeds), wanted), strict=True):
            missed += not found
            print(f"  {bug.what:72}{found or 'NOT FOUND'}", flush=True)
    print(f"\n{len(wanted) - missed} of {len(wanted)} bugs found.")
    return 1 if missed else 0


def simulate(bug: Mutant, seeds: int) -> str:
    """The first seed that fails with a bug, and what it violates. Empty: none does."""
    with tempfile.TemporaryDirectory(prefix="sec-bug-") as folder:
        shutil.copytree(ROOT / "sec", Path(folder, "sec"), ignore=shutil.ignore_patterns("__pycache__"))
        file = Path(folder, bug.file)
        file.write_text(file.read_text(encoding="utf-8").replace(bug.rule, bug.mistake), encoding="utf-8")
        command = [sys.executable, "-m", "sec", "sim", "run", "--seeds", str(seeds), "--jobs", "1", "--until-found"]
        environment = {**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        found = re.search(r"^Seed (\d+) violates (.+)$", done.stdout, re.MULTILINE)
        if done.returncode not in (0, 1) or (done.returncode == 1) != (found is not None):
            raise SystemExit(f"The simulator could not be run:\n{done.stdout}{done.stderr}")
        return f"seed {found[1]}: {found[2][:90]}" if found else ""


if __name__ == "__main__":
    raise SystemExit(main())
