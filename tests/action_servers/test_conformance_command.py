"""`secctl conformance` finds each breach that is planted, and none in servers that keep the contract."""

import json
import re
import shlex
import socket
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from batching import Batching
from breaches import BREACHES, Breach, serving
from click.testing import CliRunner, Result
from contract import ActionServer
from postgres_support import Postgres
from secctl.__main__ import cli
from secctl.conformance.run import CLAUSES

ROOT = Path(__file__).resolve().parent.parent.parent
PLAIN = ROOT / "examples" / "action-servers" / "python" / "server.py"
HERE = Path(__file__).resolve().parent


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["conformance", *arguments], catch_exceptions=False)


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def plain(address: str, file: Path | str) -> str:
    """The command of the plain example in Python."""
    return shlex.join([sys.executable, str(PLAIN), address, str(file)])


def kit(address: str, file: Path) -> str:
    """The command of the conformance actions that are made with the kit."""
    program = [sys.executable, "-m", "sec_client.kit", "conformant_kit:server", "--listen", address]
    return shlex.join(["env", f"PYTHONPATH={HERE}", f"CONFORMANT_KIT_FILE={file}", *program])


def test_each_breach_is_planted_once_and_there_are_enough() -> None:
    assert len(BREACHES) >= 12
    assert max(Counter(breach.name for breach in BREACHES).values()) == 1
    assert {breach.clause for breach in BREACHES} == {*CLAUSES} - {
        "durable",
        "graceful-stop",
        "batch-stop",
    }  # which have tests of their own


@pytest.mark.parametrize("breach", BREACHES, ids=lambda breach: f"{breach.clause}-{breach.name}")
def test_a_breach_is_found(breach: Breach) -> None:
    with serving(breach) as address:
        patience = ["--patience", "2"] if breach.name == "DropsWhatItHasNoRoomFor" else []  # what never comes is not waited for
        result = run(address, "--clause", breach.clause, *patience)
    assert result.exit_code == 1, result.output
    assert f"breaks 1 clauses of the contract: {breach.clause}." in result.output


def test_a_breach_is_told_by_its_clause_and_by_what_was_seen(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    breach = next(breach for breach in BREACHES if breach.name == "ForgetsAnswers")
    with serving(breach) as address:
        result = run(address, "--clause", "idempotent-do", "--clause", "epoch-per-saga", "--junit", str(report))
        as_json = run(address, "--clause", "epoch-per-saga", "--output", "json")
    assert (
        "broken       [idempotent-do]   A do that is seen again answers what it answered before, and has no further effect.\n"
        "                               A repeated do answered the output b'16'; the first time it answered the output b'3'.\n"
    ) in result.output
    [suite] = ElementTree.parse(report).getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "2", "0")
    [failure, _] = suite.iter("failure")
    assert "A repeated do answered" in failure.get("message", "")
    assert [check["verdict"] for check in json.loads(as_json.output)["checks"]] == ["kept"]


def test_the_kit_keeps_the_contract_on_postgres(postgres: Postgres) -> None:
    postgres.execute("CREATE SCHEMA conformance")
    address = free_address()
    program = [sys.executable, "-m", "sec_client.kit", "conformant_kit:server", "--listen", address]
    dsn = f"CONFORMANT_KIT_POSTGRES={postgres.dsn('conformance')}"
    result = run(address, "--run", shlex.join(["env", f"PYTHONPATH={HERE}", dsn, *program]))
    assert result.exit_code == 0, result.output
    assert re.search(r"keeps the contract in \d+ checks\.", result.output), result.output
    assert "could not be made" not in result.output
    assert postgres.execute("SELECT count(*) > 100 FROM conformance.sec_kit_calls") == [(True,)]


@pytest.mark.parametrize("command", [plain, kit], ids=["plain", "kit"])
def test_a_server_that_keeps_the_contract_breaks_nothing(command: Callable[[str, Path], str], tmp_path: Path) -> None:
    address = free_address()
    result = run(address, "--run", command(address, tmp_path / "data.db"))
    assert result.exit_code == 0, result.output
    assert re.search(r"keeps the contract in \d+ checks\.", result.output), result.output
    assert "could not be made" not in result.output
    assert ("are of what it does not offer" in result.output) is (command is plain)


def test_a_server_that_forgets_is_found() -> None:
    address = free_address()
    result = run(address, "--run", plain(address, ":memory:"), "--clause", "durable")
    assert result.exit_code == 1
    assert "After a crash a do in epoch 8, after one in epoch 9 before it, answered" in result.output


def test_a_server_that_drops_calls_at_its_end_is_found(tmp_path: Path) -> None:
    abrupt = tmp_path / "abrupt.py"
    abrupt.write_text("import signal, sys, server\nsignal.signal = lambda *_: None\nserver.main(*sys.argv[1:])\n")
    address = free_address()
    command = ["env", f"PYTHONPATH={PLAIN.parent}", sys.executable, str(abrupt), address, str(tmp_path / "data.db")]
    result = run(address, "--run", shlex.join(command), "--clause", "graceful-stop")
    assert result.exit_code == 1
    assert "A do of 300 ms that was in hand at SIGTERM answered the status UNAVAILABLE" in result.output


def test_a_server_that_breaks_its_streams_off_at_its_end_is_found(tmp_path: Path) -> None:
    abrupt = tmp_path / "abrupt.py"
    abrupt.write_text(
        "from sec_client.kit.service import ActionService\nfrom conformant_kit import server\nActionService.end_streams = lambda self: None\n"
    )
    address = free_address()
    program = [sys.executable, "-m", "sec_client.kit", "abrupt:server", "--listen", address, "--grace", "1"]
    command = ["env", f"PYTHONPATH={HERE}:{tmp_path}", f"CONFORMANT_KIT_FILE={tmp_path / 'data.db'}", *program]
    result = run(address, "--run", shlex.join(command), "--clause", "batch-stop")
    assert result.exit_code == 1
    assert "At SIGTERM a stream ended with" in result.output


def test_a_server_that_takes_batches_by_hand_breaks_nothing() -> None:
    with serving(Breach("None", "", Batching)) as address:
        result = run(address)
    assert result.exit_code == 0, result.output
    assert "of what it does not offer" not in result.output


def test_what_is_not_offered_is_said() -> None:
    with serving(Breach("None", "", ActionServer)) as address:
        result = run(address, "--clause", "batch-same", "--clause", "keys")
        as_json = run(address, "--clause", "batch-same", "--output", "json")
    assert result.exit_code == 0
    assert "not offered  [batch-same]" in result.output
    assert "By its Describe the server takes no batches." in result.output
    assert result.output.endswith("keeps the contract in 1 checks. 3 checks are of what it does not offer.\n")
    assert {check["verdict"] for check in json.loads(as_json.output)["checks"]} == {"not offered"}


def test_what_cannot_be_checked_is_said() -> None:
    with serving(Breach("None", "", ActionServer)) as address:
        result = run(address, "--clause", "graceful-stop", "--clause", "not-offered")
    assert result.exit_code == 0
    assert "not checked  [graceful-stop]" in result.output
    assert result.output.endswith("keeps the contract in 1 checks. 1 checks could not be made.\n")


def test_a_server_that_is_not_there_is_told(tmp_path: Path) -> None:
    address = free_address()
    nobody = run(address, "--patience", "1")
    assert nobody.exit_code == 3
    assert f"error: No action server can be reached at {address}: UNAVAILABLE" in nobody.output
    ended = run(address, "--run", "false")
    assert ended.exit_code == 3
    assert 'error: "false" has ended with 1.' in ended.output
    missing = run(address, "--run", str(tmp_path / "missing"))
    assert missing.exit_code == 3
    assert "cannot be started" in missing.output
    assert run("nowhere").exit_code == 2


def test_the_clauses_are_those_of_the_contract() -> None:
    named = set(
        re.findall(r"^\s*//\s+(?:- |\w+\s+)?\[([a-z-]+)\] ", (ROOT / "protos/sec/v1/action_server.proto").read_text(), re.MULTILINE)
    )
    assert named == set(CLAUSES)
