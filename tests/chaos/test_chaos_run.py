"""A short chaos run with real processes, from the command line, and what can be found in what it leaves."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sec.chaos.history import Fault, read_events
from sec.chaos.run import load
from sec.cli import main as sec
from sec.core.records import OwnerChanged

SECONDS = 20


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(sec, ["chaos", *arguments], prog_name="sec")


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run in which every invariant held."""
    folder = tmp_path_factory.mktemp("chaos") / "run"
    options = ["--seed=7", f"--duration={SECONDS}", "--nodes=3", "--rate=3", "--lease-ttl=2", f"--directory={folder}"]
    ended = subprocess.run([sys.executable, "-m", "sec", "chaos", "run", *options], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{ended.stdout}{ended.stderr}"
    assert "Every invariant holds." in ended.stdout
    assert f"Repeat it: sec chaos run --seed 7 --duration {SECONDS} --nodes 3 --rate 3 --lease-ttl 2" in ended.stdout
    return folder


@pytest.mark.timeout(300)
def test_a_short_run_holds_and_was_chaos(left: Path) -> None:
    evidence = load(left)
    faults = {event.how for event in evidence.events if isinstance(event, Fault)}
    assert {"kill", "stop"} <= faults, "otherwise nothing was tried"
    takeovers = [e for log in evidence.logs.values() for e in log.entries if isinstance(e.record, OwnerChanged)]
    assert takeovers
    assert len(evidence.logs) > 30
    assert evidence.deliveries
    assert {effect.phase for effect in evidence.had} == {"do", "undo"}
    assert len({delivery.server for delivery in evidence.deliveries}) == 2
    assert "every invariant holds" in (left / "report.html").read_text()
    assert sorted(path.name for path in (left / "cluster" / "logs").iterdir()) == [
        *("sec-1.log", "sec-2.log", "sec-3.log", "server-1.log", "server-2.log"),
    ]


@pytest.mark.timeout(300)
def test_the_check_can_be_repeated_and_finds_what_is_lost(left: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(left, copy, ignore=shutil.ignore_patterns("cluster"))
    again = invoke("check", str(copy))
    assert again.exit_code == 0, again.output
    lost = next(event.saga_id for event in read_events(copy / "history.jsonl") if getattr(event, "call", "") == "submit")
    (copy / "logs" / f"{lost}.jsonl").unlink()
    found = invoke("check", str(copy))
    assert found.exit_code == 1
    assert f'Invariant 4: Saga "{lost}": its submit was acknowledged, and it is not there.' in found.output
    assert re.search(r"Invariant 4: .* acknowledged", (copy / "violations.txt").read_text())


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    refused = invoke("run", f"--directory={tmp_path}")
    assert refused.exit_code == 2
    assert "is not empty" in refused.output
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_folder_without_a_run_cannot_be_checked(tmp_path: Path) -> None:
    refused = invoke("check", str(tmp_path))
    assert refused.exit_code == 2
    assert "is not the folder of a chaos run" in refused.output


def test_a_kind_of_fault_that_does_not_exist_is_refused() -> None:
    refused = invoke("run", "--faults=kill,earthquake")
    assert refused.exit_code == 2
    assert '"earthquake" is no kind of fault' in refused.output
