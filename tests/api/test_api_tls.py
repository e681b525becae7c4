"""TLS with certificates on both sides, between all parties: client, SEC node, action server."""

from pathlib import Path

import pytest
from certificates_support import make_certificates
from inprocess_support import World, chain, cluster
from sec_client import ClusterUnavailable, SagaState, Tls
from sec_client.aio import Client
from waiting_support import until

from sec.api.server import TlsFiles
from sec.core.records import SecNodeName
from sec.node.settings import Settings
from sec.run import NodeConfig
from sec.store.etcd import EtcdConfig


async def test_sec_nodes_show_each_other_the_certificates_that_they_serve_with(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    served = TlsFiles(tmp_path / "server.pem", tmp_path / "server.key", tmp_path / "ca.pem")
    config = NodeConfig(Settings(SecNodeName("n1")), EtcdConfig(("127.0.0.1:1",)), tls=served)
    async with cluster() as c:
        first = await c.add("n1", tls=served, peers_tls=config.peer_credentials())
        second = await c.add("n2", tls=served, peers_tls=config.peer_credentials())
        stranger = await c.add("n3", tls=served)
        await until(lambda: "n2" in {p.name for p in first.node.peers.heard})
        await until(lambda: {"n1", "n3"} == {p.name for p in second.node.peers.heard})
        assert not stranger.node.peers.heard


def test_without_tls_sec_nodes_call_each_other_without(tmp_path: Path) -> None:
    assert NodeConfig(Settings(SecNodeName("n1")), EtcdConfig(("127.0.0.1:1",))).peer_credentials() is None


async def test_everybody_shows_a_certificate(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    ca, ours = tmp_path / "ca.pem", TlsFiles(tmp_path / "client.pem", tmp_path / "client.key")
    config = NodeConfig(Settings(SecNodeName("n1")), EtcdConfig(("127.0.0.1:1",)), action_server_ca=ca, action_server_cert=ours)
    served = TlsFiles(tmp_path / "server.pem", tmp_path / "server.key", ca)
    server_side = Tls(ca, tmp_path / "server.pem", tmp_path / "server.key")
    client_side = Tls(ca, tmp_path / "client.pem", tmp_path / "client.key")
    async with cluster() as c:
        member = await c.add("n1", tls=served, action_servers_tls=config.action_server_credentials())
        server = World().server()
        await server.start("127.0.0.1:0", sec=[member.address], tls=server_side, sec_tls=client_side)
        try:
            await until(lambda: "step" in member.node.directory.offered)
            async with Client([member.address], tls=client_side) as client:
                assert (await client.run(chain("a", "b"), timeout_s=20)).state is SagaState.DONE
            for stranger in (Tls(ca), None):
                async with Client([member.address], tls=stranger, timeout_s=2) as client:
                    with pytest.raises(ClusterUnavailable):
                        await client.nodes()
        finally:
            await server.stop(0.0)
