"""SEC nodes that watch each other: who is dead is proven, what is dead is revoked once, and a wrong suspicion does no harm."""

import logging
import socket

import pytest
from inprocess_support import Member, World, chain, cluster
from sec_client import SagaState
from sec_protos.v1 import coordinator_pb2
from waiting_support import until

from sec.core.records import SecNodeName
from sec.node.peers import Connection, Heard, Peer, Peers, connect, refuses, split
from sec.store.kv import Get, LeaseId, Put, Txn

LONG = {"lease_ttl_s": 60, "store_timeout_s": 3}
"""Nothing in these tests happens because a lease has ended."""


Followed = list[tuple[str, Heard]]


@pytest.fixture
def followed(monkeypatch: pytest.MonkeyPatch) -> Followed:
    """What came of each stream that has ended, by the name of the peer."""
    results: Followed = []
    follow = Peers._follow  # noqa: SLF001 # they are noted where they are made

    async def noted(self: Peers, peer: Peer) -> Heard:
        result = await follow(self, peer)
        results.append((peer.name, result))
        return result

    monkeypatch.setattr(Peers, "_follow", noted)
    return results


async def put_ghost(member: Member, address: str, lease: LeaseId) -> None:
    """Writes the key of an SEC node that nobody runs."""
    ghost = coordinator_pb2.SecNode(name="ghost", address=address)
    await member.kv.txn(Txn(then=[Put(member.node.keys.node(SecNodeName("ghost")), ghost.SerializeToString(), lease)]))


async def ghost_is_there(member: Member) -> bool:
    return bool((await member.kv.get(Get(member.node.keys.node(SecNodeName("ghost"))))).items)


async def crash(member: Member) -> None:
    """What a crash looks like from outside: nobody listens, and nothing is written. The node itself does not know."""
    member.kv.partition(True)
    await member.api.stop(0)


def lease_of(member: Member) -> int:
    session = member.node.session
    assert session is not None
    return session.lease


async def heard(member: Member, *names: str) -> None:
    await until(lambda: {p.name for p in member.node.peers.heard} == set(names))


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [("a:1", "a", 1), ("[::1]:7450", "::1", 7450), ("a", "", 0), ("a:b", "a", 0), ("", "", 0)],
)
def test_addresses(address: str, host: str, port: int) -> None:
    assert split(address) == (host, port)


async def test_what_a_connection_says() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert await connect(address) is Connection.REFUSED
        assert await refuses(address)
        server.listen()
        assert await connect(address) is Connection.ACCEPTED
        assert not await refuses(address)
        both = f"localhost:{server.getsockname()[1]}"  # ::1 refuses, where there is one, and 127.0.0.1 accepts
        assert await connect(both) is Connection.ACCEPTED
    assert await connect("no-such-host.invalid:1") is Connection.UNCLEAR


async def test_the_sagas_of_a_node_that_died_do_not_wait_for_its_lease(caplog: pytest.LogCaptureFixture) -> None:
    world = World(do={"a": ["hold"] * 2})
    async with cluster("n1", "n2", "n3", **LONG) as c:
        await c.serve(world.server())
        first, others = c.members["n1"], [c.members["n2"], c.members["n3"]]
        async with c.client("n1") as client, c.client("n2") as at_second:
            await client.submit(chain("a", "b"), saga_id="s1")
            await until(lambda: world.count("do", "a") == 1)
            for other in others:
                await heard(other, "n1", *({"n2", "n3"} - {other.node.settings.name}))
            session = first.node.session
            assert session is not None
            await crash(first)
            try:
                await until(lambda: any("s1" in other.node.owner.drivers for other in others))
                assert session.alive(), "nobody has waited for it"
                world.gate.set()
                assert (await at_second.wait("s1", timeout_s=20)).state is SagaState.DONE
            finally:
                first.kv.partition(False)
            await until(lambda: first.node.session is not None and first.node.session is not session)
            assert session.lost_reason == f"Its lease {session.lease:x} was revoked, as if this node had died."
        assert world.effects == {("s1", "a"): 1, ("s1", "b"): 1}
    said = {r.message for r in caplog.records if "Its session is revoked" in r.message}
    assert said == {
        f'SEC node "n1" is gone: connections to {first.address} are refused. Its session is revoked, so that nobody waits for its lease.'
    }


async def test_a_node_that_is_suspected_wrongly_lets_go_and_rejoins() -> None:
    world = World(do={"a": ["hold"] * 3})
    async with cluster("n1", "n2", **LONG) as c:
        await c.serve(world.server())
        first, second = c.members["n1"], c.members["n2"]
        async with c.client("n2") as client, c.client("n1") as at_first:
            await at_first.submit(chain("a", "b"), saga_id="s1")
            await until(lambda: world.count("do", "a") == 1)
            old = lease_of(first)
            driver = first.node.owner.drivers["s1"]  # type: ignore[index]
            await second.kv.lease_revoke(first.node.lease)
            await until(lambda: first.node.session is not None and lease_of(first) != old)
            assert driver.closed
            await until(lambda: c.owner_of("s1"))
            await heard(second, "n1")
            world.gate.set()
            assert (await client.wait("s1", timeout_s=20)).state is SagaState.DONE
        assert world.effects == {("s1", "a"): 1, ("s1", "b"): 1}


async def test_a_node_that_comes_back_ends_its_last_session_itself(caplog: pytest.LogCaptureFixture) -> None:
    async with cluster("n1", **LONG) as c:
        first = c.members["n1"]
        await crash(first)
        try:
            second = await c.add("n1", listen=first.address, **LONG)
        finally:
            first.kv.partition(False)
        assert second.node.serving
        await until(lambda: first.node.session is None)
        first.node.stop()  # it would wait for its name, which is taken
    assert any("another process answers under its name" in r.message for r in caplog.records)


async def test_an_address_that_never_answered_proves_nothing(followed: Followed) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        async with cluster("n1", **LONG) as c:
            member = c.members["n1"]
            await put_ghost(member, f"127.0.0.1:{closed.getsockname()[1]}", await member.kv.lease_grant(60))
            await until(lambda: len(followed) >= 3)
            assert set(followed) == {("ghost", Heard.NOTHING)}
            assert await ghost_is_there(member)


async def test_another_node_at_the_address_proves_nothing(followed: Followed) -> None:
    async with cluster("n1", **LONG) as c:
        member = c.members["n1"]
        lease = await member.kv.lease_grant(60)
        for address in ("0.0.0.0:7450", "127.0.0.1:0", member.address):  # the first two are nobody's
            await put_ghost(member, address, lease)
        await until(lambda: len(followed) >= 2)
        assert set(followed) == {("ghost", Heard.NOTHING)}
        assert await ghost_is_there(member)


async def test_a_session_that_has_been_replaced_is_not_revoked() -> None:
    async with cluster("n1", "n2", **LONG) as c:
        first, second = c.members["n1"], c.members["n2"]
        old = first.node.lease
        await heard(second, "n1")
        (peer,) = second.node.peers.heard
        await second.kv.lease_revoke(old)
        await until(lambda: first.node.session is not None and lease_of(first) != old)
        await second.node.peers._revoke(peer, "of a test")  # noqa: SLF001 # as if the proof had come late
        assert first.node.session is not None
        assert (await first.kv.lease_keepalive(first.node.session.lease)) > 0


async def test_where_a_refusal_says_little_the_lease_decides(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    world = World(do={"a": ["hold"] * 2})
    async with cluster("n1", "n2", revoke_on_refused=False) as c:
        await c.serve(world.server())
        first, second = c.members["n1"], c.members["n2"]
        async with c.client("n1") as client:
            await client.submit(chain("a"), saga_id="s1")
            await until(lambda: world.count("do", "a") == 1)
        session = first.node.session
        assert session is not None
        await crash(first)
        try:
            await until(lambda: "s1" in second.node.owner.drivers)
        finally:
            first.kv.partition(False)
        assert not session.alive(), "its own clock comes first"
        assert not second.node.peers.heard
        world.gate.set()
        async with c.client("n2") as client:
            assert (await client.wait("s1", timeout_s=20)).state is SagaState.DONE
    assert not any("Its session is revoked" in r.message for r in caplog.records)


async def test_a_stream_that_ends_while_the_address_answers_proves_nothing(followed: Followed) -> None:
    async with cluster("n1", "n2", **LONG) as c:
        first, second = c.members["n1"], c.members["n2"]
        await heard(second, "n1")
        lease = lease_of(first)
        first.api._peers.stop_waiting()  # noqa: SLF001 # what a server does first that stops
        await until(lambda: followed.count(("n1", Heard.ITSELF)) >= 2)
        assert lease_of(first) == lease
        assert first.node.serving
