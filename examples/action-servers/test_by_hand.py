"""What `make examples` runs: each action server is built and checked against the contract, and one saga goes through all of them.

A language whose tools are missing is skipped, with the reason.
"""

import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from sec_client import Client, NodeState, Saga, SagaState, action

from sec.dev.cluster import DevCluster
from sec.dev.processes import free_ports, is_free, launch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "docs"))

from docs_support import blocks, run_scenario  # noqa: E402 # found only now

TUTORIAL = ROOT / "docs" / "tutorial-go.md"
BIN = Path(sys.executable).parent
BUILD_TIMEOUT_S = 3600.0
"""A first build compiles SQLite and gRPC, on whatever machine this is."""
START_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Language:
    """`tools` are the programs that must be there, `program` is what is run once `build.sh` in its folder has been."""

    name: str
    tools: tuple[str, ...]
    program: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return HERE / self.name

    def missing(self) -> str:
        """Why it cannot be built here; empty when it can."""
        missing = [tool for tool in self.tools if shutil.which(tool) is None]
        return f"{self.name}: {', '.join(missing)} cannot be found" if missing else ""

    def command(self, address: str, data: Path, *actions: str) -> list[str]:
        program, *arguments = self.program
        return [shutil.which(program) or program, *arguments, address, str(data), *actions]


LANGUAGES = (
    Language("go", ("go",), (str(HERE / "go" / "bin" / "actionserver"),)),
    Language("java", ("mvn", "java"), ("java", "-jar", str(HERE / "java" / "target" / "action-server.jar"))),
    Language("python", (), (sys.executable, str(HERE / "python" / "server.py"))),
    Language("rust", ("cargo", "cc"), (str(HERE / "rust" / "target" / "debug" / "action-server"),)),
    Language("typescript", ("node", "npm"), ("node", str(HERE / "typescript" / "dist" / "src" / "main.js"))),
)
NODES = {
    "hotel": "book_hotel",
    "car": "rent_car",
    "flight": "book_flight",
    "insurance": "insure_trip",
    "payment": "take_payment",
}
BOOKED = [node for node in NODES if node != "payment"]


@cache
def build(language: Language) -> None:
    """Runs its build, once."""
    script = language.folder / "build.sh"
    if script.exists():
        environment = os.environ | {"PROTOC": f"{sys.executable} -m grpc_tools.protoc"}
        subprocess.run(["sh", str(script)], check=True, env=environment, timeout=BUILD_TIMEOUT_S)


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while not condition():
        assert time.monotonic() < end, f"not in time: {what}"
        time.sleep(0.01)


def free_address() -> str:
    return f"127.0.0.1:{free_ports(1)[0]}"


@pytest.mark.timeout(BUILD_TIMEOUT_S)
@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
def test_an_action_server_keeps_the_contract(language: Language, tmp_path: Path) -> None:
    if reason := language.missing():
        pytest.skip(reason)
    build(language)
    address = free_address()
    program = shlex.join(language.command(address, tmp_path / "data.db"))
    ended = subprocess.run([BIN / "secctl", "conformance", address, "--run", program], check=False, timeout=600)
    assert ended.returncode == 0


@contextmanager
def serving(languages: dict[str, Language], folder: Path) -> Iterator[list[str]]:
    """One action server for each action, in its language; yields their addresses."""
    with ExitStack() as stack:
        addresses = []
        for name, language in languages.items():
            address = free_address()
            command = language.command(address, folder / f"{name}.db", name)
            process = launch(command, folder / f"{name}.log")
            stack.callback(process.wait)
            stack.callback(process.kill)
            port = int(address.partition(":")[2])
            until(lambda port=port: not is_free(port), f"{language.name} listens")
            addresses.append(address)
        yield addresses


@pytest.mark.timeout(BUILD_TIMEOUT_S)
def test_a_saga_goes_through_all_languages_while_a_node_is_killed(tmp_path: Path) -> None:
    there = []
    for language in LANGUAGES:
        if reason := language.missing():
            print(f"Not in the saga: {reason}.")
        else:
            build(language)
            there.append(language)
    languages = {name: there[i % len(there)] for i, name in enumerate(NODES.values())}
    languages["conformance.add"] = there[0]
    trip = Saga("trip")
    trip.append_parallel(*(action(node, NODES[node]) for node in BOOKED))
    trip.append(action("pause", "conformance.add"))
    trip.append(action("payment", "take_payment", reads=BOOKED))
    with serving(languages, tmp_path) as servers:
        extra = [part for server in servers for part in ("--action-server", server)]
        with DevCluster(tmp_path / "cluster", extra=extra) as cluster, Client(cluster.addresses) as client:
            for price, state, left in ((90, SagaState.DONE, 1), (110, SagaState.UNDONE, 0)):
                params = {"guest": "Ada", "budget": 100, "price": price, "amount": 1, "sleep_ms": 1000}
                saga_id = client.submit(trip, params=params).saga_id
                until(lambda saga_id=saga_id: is_working(client, saga_id, "pause"), "the saga is in its middle")
                owner = client.get(saga_id).summary.owner
                cluster.kill(owner)
                result = client.wait(saga_id, timeout_s=120)
                assert result.state is state
                assert [bookings(tmp_path / f"{name}.db") for name in NODES.values()] == [left] * len(NODES)
                if left:
                    assert result.output == "Ada paid 90 for: car for Ada, flight for Ada, hotel for Ada, insurance for Ada"
                    for name in NODES.values():
                        forget(tmp_path / f"{name}.db")
                cluster.restart(owner)


def is_working(client: Client, saga_id: str, node: str) -> bool:
    return any(view.node == node and view.state is NodeState.WORKING for view in client.get(saga_id).nodes)


def bookings(file: Path) -> int:
    with closing(sqlite3.connect(file)) as db:
        return int(db.execute("SELECT count(*) FROM bookings").fetchone()[0])


def forget(file: Path) -> None:
    with closing(sqlite3.connect(file, timeout=30)) as db, db:
        db.execute("DELETE FROM bookings")


def test_the_files_of_the_tutorial_are_those_of_the_example() -> None:
    shown = {b.mark.removeprefix("file="): b.text for b in blocks(TUTORIAL) if b.language == "go" and b.mark}
    there = {path.name: path.read_text() for path in (HERE / "go").glob("*.go")}
    assert shown == there


@pytest.mark.timeout(BUILD_TIMEOUT_S)
def test_the_tutorial_works_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := LANGUAGES[0].missing():
        pytest.skip(reason)
    page = tmp_path / TUTORIAL.name
    page.write_text(TUTORIAL.read_text().replace("127.0.0.1:7070", free_address()))
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.setenv("SEC_CLUSTER", str(ROOT))
    with DevCluster(tmp_path / "cluster") as cluster:
        run_scenario(page, folder, cluster.addresses)
