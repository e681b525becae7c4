"""SEC nodes that lose their session, their neighbours or an event: sagas go on, once, and nobody acts in another's name."""

import asyncio
from collections.abc import Sequence

import pytest
from inprocess_support import World, chain, cluster
from node_support import held_back, paused, records_of
from sec_client import SagaState
from sec_model.commands import Pause, Resume
from waiting_support import until

from sec.core.records import OwnerChanged, SagaId, Started
from sec.node.claims import Claims, in_turn
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


async def test_a_command_that_comes_during_a_takeover_is_taken_up() -> None:
    world = World(do={"a": ["hold", "hold"]})
    async with cluster("n1", "n2") as c, c.client("n1") as client:
        await c.serve(world.server())
        saga_id = (await client.submit(chain("a", "b"))).saga_id
        await until(lambda: world.count("do", "a") == 1)
        second = c.members["n2"]
        reached, gate = held_back(second.node.definitions, "graph")
        await client.drain("n1")
        await reached.wait()  # it is claimed, with the commands of that moment
        await client.command(saga_id, Pause("in between"))
        await until(lambda: second.node.live.items.keys() >= c.etcd_keys(second.node.keys.commands))
        gate.set()
        assert await paused(client, saga_id) == "in between"
        world.gate.set()
        await client.command(saga_id, Resume())
        assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.DONE


@pytest.mark.parametrize("method", ["submit", "start", "claim"])
async def test_a_saga_that_a_draining_node_gets_too_late_goes_to_another(method: str) -> None:
    """The write that made it the owner was under way when the node was drained. Its session lasts, and so would its ownership."""
    world = World(do={"a": ["hold"] * 2})
    async with cluster("n1", "n2", lease_ttl_s=60, store_timeout_s=3) as c, c.client("n1") as at_first, c.client("n2") as client:
        await c.serve(world.server())
        first = c.members["n1"].node
        if method != "submit":
            await client.submit(chain("a", "b"), saga_id="s1", start=method == "claim")
        reached, gate = held_back(first.sagas, method)
        async with asyncio.TaskGroup() as group:
            match method:
                case "submit":
                    group.create_task(at_first.submit(chain("a", "b"), saga_id="s1"))
                case "start":
                    group.create_task(at_first.start("s1"))
                case "claim":
                    await client.drain("n2")
            await reached.wait()
            await client.drain("n2", undo=True)
            await client.drain("n1")
            await until(lambda: first.owner._session is None)  # noqa: SLF001
            gate.set()
        await until(lambda: c.owner_of("s1") is c.members["n2"])
        world.gate.set()
        assert (await client.wait("s1", timeout_s=20)).state is SagaState.DONE
        assert len([r for r in await records_of(c.members["n1"], "s1") if isinstance(r, Started)]) == 2


async def test_nor_does_a_draining_node_keep_a_saga_that_it_cannot_read() -> None:
    world = World(do={"a": ["hold"]})
    async with cluster("n1", "n2", lease_ttl_s=60, store_timeout_s=3) as c, c.client("n1") as client:
        await c.serve(world.server())
        first, second = c.members["n1"].node, c.members["n2"].node
        await client.submit(chain("a", "b"), saga_id="bad")
        await until(lambda: world.ran)
        c.etcd_put(first.keys.log_batch(SagaId("bad"), 4), b"\xff")
        reached, gate = held_back(second.sagas, "claim")
        await client.drain("n1")
        await reached.wait()
        await client.drain("n2")
        await client.drain("n1", undo=True)
        await until(lambda: second.owner._session is None and first.serving)  # noqa: SLF001
        gate.set()
        await until(lambda: SagaId("bad") in first.owner.unreadable)
        assert not second.owner.unreadable


def test_claims_are_spread_evenly_and_alike_on_every_node() -> None:
    nodes = [f"n{i}" for i in range(5)]
    firsts = [in_turn(SagaId(f"s{i}"), nodes)[0] for i in range(5_000)]  # type: ignore[arg-type]
    for node in nodes:
        assert 850 < firsts.count(node) < 1_150
    assert in_turn(SagaId("s"), nodes) == in_turn(SagaId("s"), list(reversed(nodes)))  # type: ignore[arg-type]
    without = [n for n in nodes if n != "n2"]
    for i in range(200):
        order = in_turn(SagaId(f"s{i}"), nodes)  # type: ignore[arg-type]
        assert [n for n in order if n != "n2"] == in_turn(SagaId(f"s{i}"), without), (
            "a node that goes changes nothing for the others"
        )  # type: ignore[arg-type]
