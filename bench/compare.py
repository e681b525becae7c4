"""Compares the throughput of this checkout with that of another revision. `make bench-compare` runs it.

    python bench/compare.py REVISION [--rounds N] [options of `sec bench`]

The revision is checked out beside, and gets a virtual environment of its own. The two are measured in turns, and each figure is given as the median of the ratios of the
rounds, this checkout to the other: what changes on the machine meanwhile hits both. A revision that has no `sec bench` yet cannot be compared.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ("sagas_per_s", "p50_ms", "p99_ms", "sec_us", "server_us", "client_us", "etcd_us", "etcd_txns", "etcd_bytes")
Row = Mapping[str, Any]
Key = tuple[str, int, int, int]


def rows(found: Sequence[Row]) -> dict[Key, dict[str, float]]:
    """The rows of a bench by what they are of, with their figures."""
    return {
        (row["shape"], row["nodes"], row["etcd"], row["in_flight"]): {
            name: value
            for name in FIGURES
            if (value := _cpu_us(row, name.removesuffix("_us")) if name.endswith("_us") else row[name]) is not None
        }
        for row in found
        if "shape" in row
    }


def _cpu_us(row: Row, kind: str) -> float | None:
    return sum(us for name, us in row["cpu_us"].items() if name.split("-")[0] == kind) or None


def ratios(rounds: Sequence[tuple[Sequence[Row], Sequence[Row]]]) -> dict[Key, dict[str, float]]:
    """The median over the rounds of each figure's ratio, ours to theirs."""
    pairs = [(rows(ours), rows(theirs)) for ours, theirs in rounds]
    return {
        key: {
            name: statistics.median(ours[key][name] / theirs[key][name] for ours, theirs in pairs if theirs[key].get(name))
            for name in figures
            if any(theirs[key].get(name) for _, theirs in pairs)
        }
        for key, figures in pairs[0][0].items()
    }


def measured(checkout: Path, options: Sequence[str]) -> list[Row]:
    """What `sec bench` of a checkout finds. Raises `CalledProcessError`."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        subprocess.run(
            [checkout / ".venv/bin/sec", "bench", *options, f"--json={file.name}"], check=True, stdout=subprocess.DEVNULL
        )
        found: list[Row] = json.loads(Path(file.name).read_text())
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Compares the throughput of this checkout with that of another revision.")
    parser.add_argument("revision")
    parser.add_argument("--rounds", type=int, default=3)
    given, options = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as scratch:
        other = Path(scratch) / "other"
        git = ["git", "-C", str(ROOT), "worktree"]
        try:
            subprocess.run([*git, "add", "--quiet", "--detach", str(other), given.revision], check=True)
            subprocess.run(["make", "--silent", "install"], cwd=other, check=True, stdout=subprocess.DEVNULL)
            rounds = [(measured(ROOT, options), measured(other, options)) for _ in range(given.rounds)]
        except subprocess.CalledProcessError as error:
            print(f"{given.revision} cannot be compared: {error}", file=sys.stderr)
            return 2
        finally:
            subprocess.run([*git, "remove", "--force", str(other)], check=False, stderr=subprocess.DEVNULL)
    print(f"This checkout to {given.revision}, medians of the ratios of {given.rounds} rounds:")
    for (shape, nodes, etcd, in_flight), figures in ratios(rounds).items():
        told = ", ".join(f"{name} {ratio:.2f}" for name, ratio in figures.items())
        print(f"{shape}, {nodes} nodes, {etcd} etcd, {in_flight} in flight: {told}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
