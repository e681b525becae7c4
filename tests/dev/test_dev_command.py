"""`sec dev` as users run it: a process that is given signals."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from dev_support import descendants, environment, has_said, running, until
from sec_client import Client

from sec.dev.command import told
from sec.dev.processes import free_ports

READY = "Ctrl-C stops everything"


@contextmanager
def sec_dev(tmp_path: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """The command, and the file with what it prints. Whatever is left of it in the end is killed, together with its cluster."""
    printed = tmp_path / "printed.txt"
    command = [sys.executable, "-m", "sec", "dev", "--data", "data", *options]
    with printed.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment(), start_new_session=True
        )
    try:
        yield process, printed
    finally:
        process.kill()
        process.wait()


def stop(process: subprocess.Popen[bytes], signum: int, printed: Path) -> None:
    """Stops it, and asserts that it goes well and leaves nothing."""
    started = descendants(process.pid)
    process.send_signal(signum)
    assert process.wait(timeout=30) == 0, printed.read_text()
    assert not [pid for pid in started if running(pid)]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_cluster_runs_looks_after_its_nodes_and_leaves_nothing(tmp_path: Path, signum: int) -> None:
    (port,) = free_ports(1)
    with sec_dev(tmp_path, "--nodes", "1", "--port", str(port), "--lease-ttl", "2") as (process, printed):
        until(lambda: has_said(printed, READY, process), "it is up")
        assert f"export SEC_ADDRESSES=127.0.0.1:{port}\n" in printed.read_text()
        assert "saga list" in printed.read_text()
        assert f"Data folder: {tmp_path / 'data'}" in printed.read_text()
        (node,) = [pid for pid in descendants(process.pid) if b"--name=sec-1" in Path(f"/proc/{pid}/cmdline").read_bytes()]

        subprocess.run(["kill", "-9", str(node)], check=True)
        until(
            lambda: has_said(printed, "SEC node sec-1 ended unexpectedly by SIGKILL. It is started again.", process), "it is told"
        )
        until(lambda: has_said(printed, 'SEC node "sec-1" has joined the cluster.', process), "the node is back")
        with Client(f"127.0.0.1:{port}") as client:
            assert [n.name for n in client.nodes().nodes] == ["sec-1"]
        stop(process, signum, printed)
    assert "Everything has stopped." in printed.read_text()
    assert (tmp_path / "data" / "logs" / "sec-1.log").exists()


def test_the_data_is_kept_unless_fresh_is_given_and_one_folder_has_one_cluster(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    options = ("--nodes", "1", "--port", str(port))
    log = tmp_path / "data" / "logs" / "sec-1.log"
    with sec_dev(tmp_path, *options) as (process, printed):
        until(lambda: has_said(printed, READY, process), "it is up")
        second = subprocess.run(
            [sys.executable, "-m", "sec", "dev", "--data", "data", "--fresh", "--port", str(free_ports(1)[0])],
            cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert second.returncode == 1
        assert second.stderr == 'Error: Another "sec dev" uses the folder data. Stop it, or choose another folder with --data.\n'
        third = subprocess.run(
            [sys.executable, "-m", "sec", "dev", "--data", "other", "--port", str(port)],
            cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert third.returncode == 1
        assert third.stderr.startswith(f"Error: Port {port} of 127.0.0.1 is taken")
        stop(process, signal.SIGINT, printed)
    assert log.read_text().count("serves on") == 1
    (tmp_path / "data" / "mine.txt").write_text("not ours to remove")
    for option, runs in (("--keep", 2), ("--fresh", 1)):
        with sec_dev(tmp_path, *options, option) as (process, printed):
            until(lambda: has_said(printed, READY, process), "it is up")
            stop(process, signal.SIGTERM, printed)
        assert log.read_text().count("serves on") == runs
    assert (tmp_path / "data" / "mine.txt").exists()


def test_an_interrupted_start_leaves_nothing(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with sec_dev(tmp_path, "--nodes", "1", "--port", str(port)) as (process, printed):
        until(lambda: bool(descendants(process.pid)), "something was started")
        stop(process, signal.SIGINT, printed)
    assert READY not in printed.read_text()


def test_a_dead_node_stays_dead_when_that_is_wanted(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with sec_dev(tmp_path, "--nodes", "1", "--port", str(port), "--no-restart") as (process, printed):
        until(lambda: has_said(printed, READY, process), "it is up")
        (node,) = [pid for pid in descendants(process.pid) if b"--name=sec-1" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        subprocess.run(["kill", "-9", str(node)], check=True)
        until(lambda: has_said(printed, "It is not started again (--no-restart).", process), "it is told")
        stop(process, signal.SIGINT, printed)
    assert "has joined" not in printed.read_text()


def test_an_etcd_that_is_none_is_refused(tmp_path: Path) -> None:
    with sec_dev(tmp_path, "--etcd-binary", "/nonexistent/etcd", "--port", str(free_ports(1)[0]), "--nodes", "1") as (
        process,
        printed,
    ):
        assert process.wait(timeout=30) == 1
    assert '"/nonexistent/etcd", which the option names as the etcd to run, is not an executable file.' in printed.read_text()


@pytest.mark.parametrize(
    ("line", "news"),
    [
        ('2026-01-02 03:04:05,678 INFO    sec.node.node: SEC node "a" has joined.', 'SEC node "a" has joined.'),
        ("2026-01-02 03:04:05,678 WARNING sec.store.session: It is slow.", "warning: It is slow."),
        ("2026-01-02 03:04:05,678 ERROR   sec.node.owner: It is lost.", "error: It is lost."),
        ("2026-01-02 03:04:05,678 INFO    sec.run: It serves.", None),
        ("2026-01-02 03:04:05,678 DEBUG   sec.node.node: It ticks.", None),
        ("Traceback (most recent call last):", None),
        ("", None),
    ],
)
def test_what_of_a_log_is_told(line: str, news: str | None) -> None:
    found = told(line)
    assert (None if found is None else found.plain) == news
