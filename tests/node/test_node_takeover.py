"""SEC nodes that lose their session, their neighbours or an event: sagas go on, once, and nobody acts in another's name."""

import asyncio
from collections.abc import Sequence

import pytest
from inprocess_support import World, chain, cluster
from sec_client import SagaState
from waiting_support import until

from sec.core.records import OwnerChanged, SagaId
from sec.node.claims import Claims, claim_order
from sec.store.mirror import Change


async def log_of(member, saga_id: str):
    return (await member.node.sagas.load(SagaId(saga_id))).entries


async def test_a_saga_whose_owner_is_cut_off_goes_on_at_another_node() -> None:
    world = World(do={"b": ["hold"]})
    async with cluster("n1", "n2", "n3") as c:
        await c.serve(world.server())
        async with c.client() as client:
            saga_id = (await client.submit(chain("a", "b", "c"))).saga_id
            await until(lambda: world.count("do", "b") == 1)
            first = c.owner_of(saga_id)
            assert first is not None
            first.kv.partition(True)
            await until(lambda: c.owner_of(saga_id) not in (None, first))
            second = c.owner_of(saga_id)
            assert second is not None
            world.gate.set()
            async with c.client(second.node.settings.name) as at_second:
                result = await at_second.wait(saga_id, timeout_s=20)
            assert result.state is SagaState.DONE
            entries = await log_of(second, saga_id)
            takeovers = [e.record for e in entries if isinstance(e.record, OwnerChanged)]
            assert [t.sec_node for t in takeovers] == [second.node.settings.name]
            assert {n: world.effects[saga_id, n] for n in "abc"} == {"a": 1, "b": 1, "c": 1}
            assert not first.node.owner.drivers
            first.kv.partition(False)
            await until(lambda: first.node.serving)


async def test_past_its_deadline_a_node_dispatches_nothing() -> None:
    world = World(do={"a": ["hold"]})
    async with cluster("n1") as c:
        await c.serve(world.server())
        async with c.client() as client:
            saga_id = (await client.submit(chain("a", "b"))).saga_id
            await until(lambda: world.count("do", "a") == 1)
            member = c.members["n1"]
            session = member.node.session
            assert session is not None
            member.kv.partition(True)
            await until(lambda: not session.alive())
            world.gate.set()
            await until(lambda: not member.node.owner.drivers)
            assert not member.node.owner.may_dispatch()
            assert not member.node.serving
            assert world.count("do", "b") == 0
            member.kv.partition(False)
            assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.DONE
            assert world.effects == {(saga_id, "a"): 1, (saga_id, "b"): 1}


async def test_a_node_that_stops_hands_its_sagas_over_at_once() -> None:
    world = World(do={f"a{i}": ["hold"] for i in range(10)})
    async with cluster("n1", "n2", lease_ttl_s=60, store_timeout_s=3) as c:
        await c.serve(world.server())
        async with c.client("n1") as at_first, c.client("n2") as at_second:
            ids = [(await at_first.submit(chain(f"a{i}", "b"))).saga_id for i in range(10)]
            await until(lambda: len(world.ran) == 10)
            await c.members["n1"].stop()
            await until(lambda: set(c.members["n2"].node.owner.drivers) == set(ids))
            world.gate.set()
            for saga_id in ids:
                assert (await at_second.wait(saga_id, timeout_s=20)).state is SagaState.DONE
        assert all(count == 1 for count in world.effects.values())


async def test_a_drained_node_gives_its_sagas_away_and_takes_none_until_it_is_undrained() -> None:
    world = World(do={"a": ["hold", "hold", "hold"]})
    async with cluster("n1", "n2") as c:
        await c.serve(world.server())
        async with c.client("n1") as client:
            await client.submit(chain("a"), saga_id="s1")
            await until(lambda: c.owner_of("s1") is c.members["n1"])
            await client.drain("n1")
            await until(lambda: c.owner_of("s1") is c.members["n2"])
            assert not c.members["n1"].node.serving
            await client.submit(chain("a"), saga_id="s2")
            await until(lambda: c.owner_of("s2") is c.members["n2"])
            assert {n.name: n.draining for n in (await client.nodes()).nodes} == {"n1": True, "n2": False}
            await client.drain("n1", undo=True)
            await until(lambda: c.members["n1"].node.serving)
            await client.submit(chain("a"), saga_id="s3")
            await until(lambda: c.owner_of("s3") is c.members["n1"])
            world.gate.set()
            for saga_id in ("s1", "s2", "s3"):
                assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.DONE


async def test_the_sweep_finds_what_every_watch_has_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    def miss(self: Claims, changes: Sequence[Change]) -> None: ...

    monkeypatch.setattr(Claims, "_live_changed", miss)
    world = World(do={"a": ["hold", ""]})
    async with cluster("n1", "n2", "n3") as c:
        await c.serve(world.server())
        async with c.client("n1") as client:
            await client.submit(chain("a"), saga_id="s1")
            await until(lambda: c.owner_of("s1") is not None)
            await client.drain("n1")
            await until(lambda: c.owner_of("s1") in (c.members["n2"], c.members["n3"]))
            world.gate.set()
            assert (await client.wait("s1", timeout_s=20)).state is SagaState.DONE


async def test_one_leader_and_another_when_it_goes() -> None:
    async with cluster("n1", "n2", "n3") as c:
        await until(lambda: sum(m.node.leader.leading for m in c.members.values()) == 1)
        first = next(m for m in c.members.values() if m.node.leader.leading)
        await first.stop()
        await until(lambda: sum(m.node.leader.leading for m in c.members.values() if m is not first) == 1)


async def test_a_name_that_is_taken_waits_for_the_other_to_go() -> None:
    async with cluster("n1") as c:
        first = c.members["n1"]
        joining = asyncio.create_task(c.add("n1"))
        await asyncio.wait([joining], timeout=1.0)
        assert not joining.done(), "two nodes with one name must not both be in the cluster"
        await first.stop()
        second = await joining
        assert second.node.serving


async def test_a_saga_that_cannot_be_read_stays_with_one_node_and_harms_no_other() -> None:
    world = World(do={"a": ["hold"] * 4})
    async with cluster("n1", "n2") as c:
        await c.serve(world.server())
        async with c.client("n2") as client:
            for saga_id in ("bad", "good"):
                await client.submit(chain("a", "b"), saga_id=saga_id)
            await until(lambda: len(world.ran) == 2)
            keys = c.members["n1"].node.keys
            c.etcd_put(keys.log_batch(SagaId("bad"), 4), b"\xff\xff\xff")
            await client.drain("n2")
            first = c.members["n1"].node.owner
            await until(lambda: "bad" in first.unreadable and "good" in first.drivers)
            found = {s.saga_id: s async for s in client.list()}
            assert found["bad"].state is SagaState.CORRUPT
            assert found["bad"].error is not None
            assert 'Saga "bad" cannot be read' in found["bad"].error.message
            view = await client.get("bad")
            assert view.summary.state is SagaState.CORRUPT
            world.gate.set()
            assert (await client.wait("good", timeout_s=20)).state is SagaState.DONE
            await client.drain("n2", undo=True)
            await client.drain("n1")
            await until(lambda: "bad" in c.members["n2"].node.owner.unreadable)
            assert not first.unreadable, "a drained node gives away what it cannot run, too"


def test_claims_are_spread_evenly_and_alike_on_every_node() -> None:
    nodes = [f"n{i}" for i in range(5)]
    firsts = [claim_order(SagaId(f"s{i}"), nodes)[0] for i in range(5_000)]  # type: ignore[arg-type]
    for node in nodes:
        assert 850 < firsts.count(node) < 1_150
    assert claim_order(SagaId("s"), nodes) == claim_order(SagaId("s"), list(reversed(nodes)))  # type: ignore[arg-type]
    without = [n for n in nodes if n != "n2"]
    for i in range(200):
        order = claim_order(SagaId(f"s{i}"), nodes)  # type: ignore[arg-type]
        assert [n for n in order if n != "n2"] == claim_order(SagaId(f"s{i}"), without), (
            "a node that goes changes nothing for the others"
        )  # type: ignore[arg-type]
