"""`DevCluster` with real processes: what the tests that kill and hang SEC nodes stand on."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from dev_support import has_said, running, until
from sec_client.aio import Client

from sec.dev.cluster import DevCluster, NodeNotServing
from sec.dev.etcd import EmbeddedEtcd
from sec.dev.processes import free_ports, is_free


def pids(cluster: DevCluster) -> list[int]:
    found = [cluster.pid(name) for name in cluster.names]
    if cluster.etcd is not None:
        found.append(cluster.etcd.pid())
    assert None not in found
    return [pid for pid in found if pid is not None]


async def names(client: Client) -> set[str]:
    return {node.name for node in (await client.nodes()).nodes}


async def test_a_cluster_lives_loses_a_node_gets_it_back_and_leaves_nothing(tmp_path: Path) -> None:
    async with DevCluster(tmp_path, lease_ttl_s=2, unsafe_no_fsync=True) as cluster, Client(cluster.addresses) as client:
        everybody = {"sec-1", "sec-2", "sec-3"}
        assert set(cluster.names) == everybody
        await cluster.wait_serving_async()
        assert await names(client) <= everybody  # what one has seen of the others comes a little later
        before, address, pid = pids(cluster), cluster.address("sec-2"), cluster.pid("sec-2")

        cluster.kill("sec-2")
        assert cluster.pid("sec-2") is None
        assert cluster.exit_status("sec-2") == -signal.SIGKILL

        await cluster.restart_async("sec-2")
        assert cluster.address("sec-2") == address
        assert cluster.pid("sec-2") not in (None, pid)
        assert cluster.exit_status("sec-2") is None
        async with Client(address) as of_the_new_one:
            nodes = await of_the_new_one.nodes()
        assert nodes.answered_by == "sec-2"

        await cluster.terminate_async("sec-3")
        assert cluster.exit_status("sec-3") == 0
        assert 'SEC node "sec-3" has stopped.' in cluster.log("sec-3").read_text()
        after = [pid for pid in (cluster.pid(name) for name in cluster.names) if pid is not None]
        assert len(after) == 2
    assert not [pid for pid in {*before, *after} if running(pid)]


async def test_a_node_that_hangs_loses_its_session_and_comes_back(tmp_path: Path) -> None:
    async with (
        DevCluster(tmp_path, nodes=2, lease_ttl_s=2, unsafe_no_fsync=True) as cluster,
        Client(cluster.address("sec-1")) as client,
    ):
        async with asyncio.timeout(30):
            cluster.pause("sec-2")
            while await names(client) != {"sec-1"}:
                pass
            cluster.resume("sec-2")
            while await names(client) != {"sec-1", "sec-2"}:
                pass
        cluster.pause("sec-2")  # and what hangs is stopped all the same
        stopped = pids(cluster)
    assert not [pid for pid in stopped if running(pid)]


def test_without_an_event_loop_and_with_an_etcd_of_somebody_else(tmp_path: Path, etcd: EmbeddedEtcd) -> None:
    (port,) = free_ports(1)
    cluster = DevCluster(
        tmp_path, nodes=1, etcd_endpoints=etcd.endpoints, prefix="/dev-cluster", first_port=port, extra=["--log-level=debug"]
    )
    with cluster:
        assert cluster.etcd is None
        assert cluster.addresses == (f"127.0.0.1:{port}",)
        assert not is_free(port)
        (pid,) = pids(cluster)
        cluster.restart("sec-1")
        cluster.wait_serving("sec-1")
        assert not running(pid)
        cluster.terminate("sec-1")
        assert cluster.exit_status("sec-1") == 0
    cluster.stop()
    assert is_free(port)
    assert etcd.pid() is not None


def test_a_node_that_cannot_start_is_told_with_its_log(tmp_path: Path, etcd: EmbeddedEtcd) -> None:
    cluster = DevCluster(tmp_path, nodes=2, etcd_endpoints=etcd.endpoints, prefix="no-slash")
    with pytest.raises(NodeNotServing, match='The prefix "no-slash" must begin with "/"'):
        cluster.start()
    assert [cluster.pid(name) for name in cluster.names] == [None, None]


def test_a_given_port_that_is_taken_is_an_error_and_a_chosen_one_is_replaced(tmp_path: Path, etcd: EmbeddedEtcd) -> None:
    (port,) = free_ports(1)
    with DevCluster(tmp_path / "first", nodes=1, etcd_endpoints=etcd.endpoints, prefix="/dev-first", first_port=port):
        taken = DevCluster(tmp_path / "given", nodes=1, etcd_endpoints=etcd.endpoints, prefix="/dev-given", first_port=port)
        with pytest.raises(NodeNotServing, match=f"cannot listen on 127.0.0.1:{port}"):
            taken.start()
        moves = DevCluster(tmp_path / "chosen", nodes=1, etcd_endpoints=etcd.endpoints, prefix="/dev-chosen")
        moves._nodes["sec-1"].port = port  # noqa: SLF001  # as if another process had been faster
        with moves:
            assert moves.address("sec-1") != f"127.0.0.1:{port}"


def test_a_cluster_has_at_least_one_node(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one node"):
        DevCluster(tmp_path, nodes=0)


PARENT = """
import sys, time
from pathlib import Path
from sec.dev.cluster import DevCluster

with DevCluster(Path(sys.argv[1]), nodes=2, unsafe_no_fsync=True) as cluster:
    print("pids", *(cluster.pid(name) for name in cluster.names), cluster.etcd.pid(), "end", flush=True)
    time.sleep(3600)
"""


def test_the_processes_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "parent.log"
    with log.open("wb") as output:
        parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path / "data")], stdout=output, stderr=output)
    try:
        until(lambda: has_said(log, "end", parent), "the cluster is up")
        started = [int(word) for word in log.read_text().split("pids")[1].split("end")[0].split()]
        assert len(started) == 3
        assert all(running(pid) for pid in started)
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    until(lambda: not any(running(pid) for pid in started), "the processes of a killed parent are gone")
