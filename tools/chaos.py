"""Chaos runs, one after the other: each kind of fault by itself, and then all of them together.

    python tools/chaos.py [--each SECONDS] [--mixed SECONDS] [--seed N] [--rate SAGAS/S] [--etcd-binary PATH] [KINDS ...]

Prints a line for each run, and in the end how many faults, takeovers and violations there were. Exits with 1 when an invariant was violated, and
with 2 when a run could not be made. What the runs leave is in a folder for each, below sec-chaos-TIME. Faults of etcd need one that is sound: see docs/chaos.md.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sec.chaos.plan import ETCD_MEMBERS, KINDS, FaultKind, Options
from sec.chaos.run import CannotRun, Verdict, possible, run

EACH_S, MIXED_S = 60.0, 600.0
RATE_PER_S = 10.0
SETTLE_S = 180.0


def main() -> int:
    parser = argparse.ArgumentParser(description="Chaos runs: each kind of fault by itself, and then all of them together.")
    parser.add_argument("--each", type=float, default=EACH_S, metavar="SECONDS", help="for each kind; 0: no such runs")
    parser.add_argument("--mixed", type=float, default=MIXED_S, metavar="SECONDS", help="for all kinds together; 0: no such run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=RATE_PER_S, metavar="SAGAS/S")
    parser.add_argument("--etcd-binary", metavar="PATH")
    parser.add_argument(
        "kinds", nargs="*", choices=[[], *map(str, KINDS)], metavar="KINDS", help=f"only these, of {', '.join(KINDS)}"
    )
    given = parser.parse_args()
    wanted = [kind for kind in KINDS if kind in (given.kinds or KINDS)]
    here = possible(ETCD_MEMBERS, given.etcd_binary)
    kinds = [kind for kind in wanted if kind in here]
    if FaultKind.ETCD in wanted and FaultKind.ETCD not in kinds:
        print("Faults of etcd are left out: there is none that is sound when it is killed. See docs/chaos.md.", flush=True)
    runs: list[tuple[str, Sequence[FaultKind], float]] = [(kind, [kind], given.each) for kind in kinds]
    runs.append(("all", kinds, given.mixed))
    folder = Path(time.strftime("sec-chaos-%Y%m%d-%H%M%S"))
    faults: Counter[str] = Counter()
    sagas = takeovers = violations = failed = 0
    for name, among, seconds in runs:
        if not seconds:
            continue
        options = Options(given.seed, seconds, etcd=ETCD_MEMBERS, faults=tuple(among), rate_per_s=given.rate)
        try:
            verdict = run(options, folder / name, settle_s=SETTLE_S, etcd_binary=given.etcd_binary)
        except CannotRun as error:
            print(f"{name:10} could not be run: {str(error).splitlines()[0]}", flush=True)
            failed += 1
            continue
        print(line(name, seconds, verdict), flush=True)
        for violation in verdict.violations[:5]:
            print(f"           {violation}", flush=True)
        faults += verdict.faults
        sagas += verdict.ends.total()
        takeovers += verdict.takeovers
        violations += len(verdict.violations)
    print("\nFaults injected:")
    for what, count in sorted(faults.items()):
        print(f"  {count:6}  {what}")
    print(f"{sagas} sagas, {takeovers} takeovers, {violations} violations. What the runs left is in {folder}.")
    if failed:
        print(f"{failed} runs could not be made.")
    return 1 if violations else 2 if failed else 0


def line(name: str, seconds: float, verdict: Verdict) -> str:
    ends = ", ".join(f"{count} {end}" for end, count in sorted(verdict.ends.items()))
    return (
        f"{name:10} {seconds:4g} s  {verdict.faults.total():5} faults  {verdict.ends.total():5} sagas ({ends})  "
        f"{verdict.takeovers:5} takeovers  {len(verdict.violations)} violations"
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CannotRun as problem:
        print(problem, file=sys.stderr)
        sys.exit(2)
