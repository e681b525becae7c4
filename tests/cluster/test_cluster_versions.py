"""Versions of an action side by side, on real processes: each saga calls one of them, from its start to its end, whoever owns it and whatever is released meanwhile."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from cluster_support import CountingStore, Stage, counting_server
from sec_client import NodeState, Payload, Saga, SagaState, action, signal
from sec_client import aio as sec_aio
from sec_model.commands import NodePath, Signal
from waiting_support import eventually, until

GO = Signal(NodePath("go"), Payload.json("on"))


def fails_late(asked: str) -> Saga:
    """Two nodes that ask for an action by these words, with a wait between them, and one that fails."""
    saga = Saga("late").append(action("a", asked)).append(signal("go")).append(action("b", asked))
    return saga.append(action("c", "step"))


@asynccontextmanager
async def offering(stage: Stage, offer: str) -> AsyncIterator[CountingStore]:
    """An action server of its own for a version, which every SEC node has heard of."""
    async with counting_server(stage.cluster.addresses, offer) as store:
        await known(stage.cluster.addresses, offer, there=True)
        yield store


async def known(addresses: Sequence[str], offer: str, *, there: bool) -> None:
    for address in addresses:
        async with sec_aio.Client([address]) as client:

            async def as_expected(client: sec_aio.Client = client) -> bool:
                return any(a.name == offer and any(s.reachable for s in a.servers) for a in await client.actions()) is there

            await eventually(as_expected)


async def pinned(client: sec_aio.Client, saga_id: str) -> list[tuple[str, str]]:
    return [(r.fields["action"], r.fields["offer"]) async for r in client.log(saga_id) if r.kind == "pinned"]


async def test_a_saga_keeps_its_version_when_a_newer_one_comes_and_its_owner_dies(stage: Stage) -> None:
    async with stage.client() as client, offering(stage, "keep@1.0") as old:
        saga_id = (await client.submit(fails_late("keep@1"), params={"fail": ["c"]})).saga_id
        await until(lambda: old.effects == {"a": 1})
        async with offering(stage, "keep@1.1") as newer, offering(stage, "keep@2.0") as newest:
            stage.cluster.kill(owner := await stage.owner(client, saga_id))
            await stage.takeover(client, saga_id, owner)
            await client.command(saga_id, GO)
            result = await client.wait(saga_id, timeout_s=30)
            assert (result.state, result.errors[0].node) == (SagaState.UNDONE, "c")
            assert (old.called("a"), old.called("b")) == ((1, 1), (1, 1))
            assert old.effects == {"a": 0, "b": 0}
            assert await pinned(client, saga_id) == [("keep@1", "keep@1.0")]
            assert (await client.get(saga_id))["b"].action == "keep@1.0"

            for asked, store in (("keep@1", newer), ("keep", newest), ("keep@=1.0", old)):
                after = await client.submit(Saga("after").append(action("d", asked)))
                assert (await client.wait(after.saga_id, timeout_s=30)).state is SagaState.DONE
                assert store.called("d") == (1, 0), asked
            assert sum(newest.effects.values()) == sum(newer.effects.values()) == 1


async def test_a_saga_waits_for_its_version_and_says_so(stage: Stage) -> None:
    async with stage.client() as client, AsyncExitStack() as servers:
        first = AsyncExitStack()
        old = await first.enter_async_context(offering(stage, "gone@1"))
        saga_id = (
            await client.submit(Saga("s").append(action("a", "gone")).append(signal("go")).append(action("b", "gone")))
        ).saga_id
        await until(lambda: old.effects == {"a": 1})
        newer = await servers.enter_async_context(offering(stage, "gone@2"))
        await first.aclose()
        await known(stage.cluster.addresses, "gone@1", there=False)
        await client.command(saga_id, GO)

        async def detail() -> str:
            return (await client.get(saga_id))["b"].detail

        assert await eventually(detail) == (
            'No action server that can be reached offers "gone@1", to which the saga is pinned since it asked for "gone". Start an action server that does.'
        )
        assert (await client.get(saga_id))["b"].state is NodeState.QUEUED
        again = await servers.enter_async_context(offering(stage, "gone@1"))
        assert (await client.wait(saga_id, timeout_s=30)).state is SagaState.DONE
        assert (again.effects, newer.effects) == ({"b": 1}, {})


async def test_a_changed_definition_leaves_the_sagas_that_are_under_way_alone(stage: Stage) -> None:
    """The same name, another content, and an owner that reads the old one anew."""
    async with stage.client() as client, offering(stage, "former") as former, offering(stage, "latter") as latter:
        before = Saga("plan").append(action("a", "former")).append(signal("go")).append(action("b", "former"))
        after = Saga("plan").append(action("a", "latter")).append(signal("go")).append(action("c", "latter"))
        under_way = (await client.submit(before)).saga_id
        await until(lambda: former.effects == {"a": 1})
        changed = (await client.submit(after)).saga_id
        await until(lambda: latter.effects == {"a": 1})
        stage.cluster.kill(owner := await stage.owner(client, under_way))
        await stage.takeover(client, under_way, owner)
        for saga_id in (under_way, changed):
            await client.command(saga_id, GO)
            assert (await client.wait(saga_id, timeout_s=30)).state is SagaState.DONE
        assert (former.effects, latter.effects) == ({"a": 1, "b": 1}, {"a": 1, "c": 1})
