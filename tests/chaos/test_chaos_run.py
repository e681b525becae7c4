"""A short chaos run with real processes, from the command line, and what can be found in what it leaves."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sec.chaos.history import ClientCall, Cluster, Fault, Observed, Read, read_events
from sec.chaos.plan import SERVERS
from sec.chaos.run import load
from sec.cli import main as sec
from sec.core.records import OwnerChanged

SECONDS = 20


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(sec, ["chaos", *arguments], prog_name="sec")


def chaos(folder: Path) -> None:
    """A run in which every invariant holds."""
    options = ["--seed=7", f"--duration={SECONDS}", "--nodes=3", "--rate=3", "--lease-ttl=2", f"--directory={folder}"]
    ended = subprocess.run([sys.executable, "-m", "sec", "chaos", "run", *options], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{ended.stdout}{ended.stderr}"
    assert "Every invariant holds." in ended.stdout
    assert f"Repeat it: sec chaos run --seed 7 --duration {SECONDS} --nodes 3 --etcd 1 --rate 3 --lease-ttl 2" in ended.stdout


@pytest.mark.timeout(300)
def test_a_short_run_holds_and_its_check_finds_what_is_taken_away(tmp_path: Path) -> None:
    left = tmp_path / "run"
    chaos(left)
    was_chaos(left)
    again = invoke("check", str(left))
    assert again.exit_code == 0, again.output
    lost = next(event.saga_id for event in read_events(left / "history.jsonl") if isinstance(event, ClientCall))
    (left / "logs" / f"{lost}.jsonl").unlink()
    found = invoke("check", str(left))
    assert found.exit_code == 1
    told = f'Invariant 4: Saga "{lost}": its submit was acknowledged, and it is not there.'
    assert told in found.output
    assert told in (left / "violations.txt").read_text()
    assert "is not there" in (left / "report.html").read_text()


def was_chaos(left: Path) -> None:
    """Otherwise nothing was tried."""
    evidence = load(left)
    faults = [event for event in evidence.events if isinstance(event, Fault)]
    assert {"kill", "stop"} <= {fault.how for fault in faults}
    assert any(fault.other for fault in faults)
    assert any(delivery.again for delivery in evidence.deliveries)
    assert any(delivery.batched for delivery in evidence.deliveries)
    assert any(isinstance(entry.record, OwnerChanged) for log in evidence.logs.values() for entry in log.entries)
    assert {event.call for event in evidence.events if isinstance(event, ClientCall)} == {"submit", "command"}
    assert {Observed, Read, Cluster} <= {type(event) for event in evidence.events}
    assert len(evidence.logs) > 30
    assert {delivery.server for delivery in evidence.deliveries} == set(SERVERS)
    assert {effect.phase for effect in evidence.had} == {"do", "undo"}
    assert "every invariant holds" in (left / "report.html").read_text()
    logs = sorted(path.name for path in (left / "cluster" / "logs").iterdir())
    assert logs == ["sec-1.log", "sec-2.log", "sec-3.log", "server-1.log", "server-2.log"]


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
