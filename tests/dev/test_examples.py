"""The examples do what they say: the two forms of a saga are one, the tutorial works as it is written, the demonstration holds."""

import re
import shlex
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from dev_support import ROOT, descendants, environment, has_said, running, until
from sec_client import Definition
from sec_model.document import definition_from_document

from sec.dev.processes import free_ports, is_free, launch

TRIP = ROOT / "examples" / "trip"
TUTORIALS = {
    TRIP: {"trip_actions.py", "trip.py", "trip.yaml"},
    ROOT / "examples" / "order": {"order_actions.py", "order.yaml"},
}
"""Folders with a tutorial, and the files that somebody who follows it has in the end."""


@pytest.fixture
def _root_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def definition_in(path: Path) -> Definition:
    return definition_from_document(yaml.safe_load(path.read_text()))


@pytest.mark.usefixtures("_root_on_path")
def test_the_provisioning_saga_is_the_same_in_python_and_in_yaml() -> None:
    from examples.demo_provision.saga import demo_provision

    assert definition_in(ROOT / "examples" / "demo_provision" / "saga.yaml") == demo_provision().build()


def test_the_trip_is_the_same_in_python_and_in_yaml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TRIP))
    from trip import trip  # type: ignore[import-not-found]

    assert definition_in(TRIP / "trip.yaml") == trip.build()


def test_the_demonstration_holds_and_leaves_nothing(tmp_path: Path) -> None:
    printed = tmp_path / "printed.txt"
    started: set[int] = set()
    command = [sys.executable, "-m", "examples.demo", "--data", str(tmp_path / "data")]
    with printed.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, env=environment())
    try:
        while process.poll() is None:
            started |= descendants(process.pid)
            try:
                process.wait(timeout=0.1)
            except subprocess.TimeoutExpired:
                continue
    finally:
        process.kill()
        process.wait()
    said = printed.read_text()
    assert process.returncode == 0, said
    assert len(started) >= 5
    assert not [pid for pid in started if running(pid)]
    for claim in ("has taken over, in epoch", "has 9 effects, each exactly once", "Its inventory is empty.", "Everything held."):
        assert claim in said
    assert "\x1b" not in said


def test_a_demonstration_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    printed = tmp_path / "printed.txt"
    command = [sys.executable, "-m", "examples.demo", "--data", str(tmp_path / "data")]
    with printed.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, env=environment())
    try:
        until(lambda: has_said(printed, "kill -9", process), "the owner was killed")
        started = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 130, printed.read_text()
    finally:
        process.kill()
        process.wait()
    assert started
    assert not [pid for pid in started if running(pid)]
    assert "nothing is left running" in printed.read_text()


@pytest.mark.usefixtures("_root_on_path")
def test_the_inventory_finds_what_was_not_had_exactly_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from examples.demo_provision import inventory as module

    path = tmp_path / "inventory.db"
    module.prepare(path)
    inventory = module.Inventory(path)
    line = 'INSERT INTO effects (key, saga_id, node, phase, "table", epoch, sec_node, time_s) VALUES (?, ?, ?, ?, "ips", 1, "sec-1", 0)'
    with closing(sqlite3.connect(path)) as db, db:
        for key, phases, rows in (
            ("fine", ("do",), 1),
            ("undone", ("do", "undo"), 0),
            ("twice", ("do", "do"), 2),
            ("again", ("do", "undo", "undo"), 0),
            ("lost", ("do",), 0),
            ("ghost", (), 1),
        ):
            db.executemany(line, [(key, "s", key, phase) for phase in phases])
            db.executemany("INSERT INTO ips (key, saga_id, ip, instance) VALUES (?, 's', '10.0.0.1', 'i')", [(key,)] * rows)
    assert inventory.problems("another") == []
    assert inventory.problems("s") == [
        'The effect of node "twice" was had 2 times (key twice).',
        'The effect of node "again" was undone 2 times (key again).',
        'Of node "again" there are 0 rows, after 1 do and 2 undo (key again).',
        'Of node "lost" there are 0 rows, after 1 do and 0 undo (key lost).',
        'The effect of node "?" was had 0 times (key ghost).',
        'Of node "?" there are 1 rows, after 0 do and 0 undo (key ghost).',
    ]
    assert not inventory.is_empty("s")
    assert inventory.is_empty("another")
    assert module.main(["s", "--inventory", str(path)]) == 1
    assert "ip=10.0.0.1" in capsys.readouterr().out
    assert module.main(["another", "--inventory", str(path)]) == 0
    assert "The inventory is empty." in capsys.readouterr().out
    assert module.main(["--inventory", str(tmp_path / "none.db")]) == 2
    with closing(sqlite3.connect(path)) as db, pytest.raises(sqlite3.IntegrityError, match="only ever appended to"):
        db.execute("DELETE FROM effects")


@dataclass(frozen=True)
class Block:
    """A fenced block of the tutorial: its language, what else stands behind the fence, and its lines."""

    language: str
    options: dict[str, str]
    text: str


def blocks(folder: Path) -> Iterator[Block]:
    page = (folder / "README.md").read_text()
    for language, rest, text in re.findall(r"^```(\w+)([^\n]*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        yield Block(language, dict(option.split("=", 1) for option in shlex.split(rest)), text)


def pieces(folder: Path) -> dict[str, str]:
    """The files that the tutorial in this folder tells to write."""
    files: dict[str, list[str]] = {}
    for block in blocks(folder):
        if "title" in block.options:
            files.setdefault(block.options["title"], []).append(block.text)
    return {name: "\n\n".join(found) for name, found in files.items()}


@pytest.mark.parametrize("folder", TUTORIALS, ids=lambda folder: folder.name)
def test_the_files_beside_a_tutorial_are_those_in_it(folder: Path) -> None:
    def without_blank_lines(text: str) -> list[str]:
        return [line for line in text.splitlines() if line]

    written = pieces(folder)
    assert set(written) == TUTORIALS[folder]
    for name, text in written.items():
        assert without_blank_lines(text) == without_blank_lines((folder / name).read_text()), name


@pytest.mark.parametrize("folder", TUTORIALS, ids=lambda folder: folder.name)
def test_a_tutorial_works_as_it_is_written(folder: Path, tmp_path: Path) -> None:
    for name, text in pieces(folder).items():
        (tmp_path / name).write_text(text)
    port = next(port for port in free_ports(100) if is_free(port + 1))
    ours = environment(SEC_DEV_NODES="2", SEC_DEV_PORT=str(port), SEC_ADDRESSES=f"127.0.0.1:{port},127.0.0.1:{port + 1}")
    terminals: list[subprocess.Popen[bytes]] = []
    printed: str | None = None
    try:
        for block in blocks(folder):
            command = block.text.replace("127.0.0.1:7450", f"127.0.0.1:{port}")
            if block.language == "text":
                pattern = ".*".join(re.escape(part) for part in block.text.split("…"))
                assert re.fullmatch(pattern, printed or ""), f"{printed!r} is not {block.text!r}"
            elif "terminal" in block.options:
                log = tmp_path / f"terminal-{block.options['terminal']}.txt"
                script = f"cd {shlex.quote(str(tmp_path))} && exec {command}"
                terminal = launch(["/bin/sh", "-c", script], log, environment=ours)
                terminals.append(terminal)
                wanted = block.options["until"]
                until(lambda: has_said(log, wanted, terminal), f"terminal {block.options['terminal']} says {wanted!r}")  # noqa: B023
            elif block.language == "sh":
                ended = subprocess.run(
                    ["/bin/sh", "-c", command], cwd=tmp_path, env=ours, capture_output=True, text=True, timeout=60, check=False
                )
                assert ended.returncode == int(block.options.get("exit", "0")), f"{command}\n{ended.stdout}\n{ended.stderr}"
                assert not ended.stderr
                printed = ended.stdout
        assert printed is not None
        for terminal in reversed(terminals):
            terminal.send_signal(signal.SIGINT)
            assert terminal.wait(timeout=30) == 0
    finally:
        for terminal in terminals:
            terminal.kill()
            terminal.wait()
