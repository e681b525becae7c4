"""What a node tells Prometheus."""

import asyncio
import urllib.request

import pytest
from inprocess_support import World, chain, cluster
from sec_client import Overloaded, Saga, action
from sec_client.aio import Client
from waiting_support import eventually, until

from sec.api.metrics import Metrics
from sec.api.server import CannotListen
from sec.node.settings import Bounds


async def test_a_node_tells_of_its_sagas_its_writes_and_its_calls() -> None:
    world = World(do={"b": ["hold"]})
    async with cluster("n1", bounds=Bounds(active=1)) as c, c.client() as client:
        node = c.members["n1"].node
        metrics = Metrics(node, "127.0.0.1", 0)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

        def fetch() -> dict[str, float]:
            with opener.open(f"http://127.0.0.1:{metrics.port}/metrics", timeout=10) as answer:
                lines = answer.read().decode().splitlines()
            return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))}

        try:
            await c.serve(world.server())
            await until(lambda: node.leader.leading)
            await client.submit(chain("a", "b"), saga_id="s1")
            await until(lambda: world.count("do", "b") == 1)

            async def told_of_one_call() -> dict[str, float]:
                told = await asyncio.to_thread(fetch)
                return told if told.get('sec_call_seconds_count{action="step",answer="answered",phase="do"}') == 1 else {}

            told = await eventually(told_of_one_call)
            assert told['sec_sagas_owned{state="running"}'] == 1
            assert told['sec_sagas_owned{state="stuck"}'] == 0
            assert (told["sec_leader"], told["sec_serving"], told["sec_store_writes_waiting"]) == (1, 1, 0)
            assert told["sec_store_writes_total"] >= told["sec_store_transactions_total"] >= 2
            assert (told['sec_condition{condition="well"}'], told['sec_condition{condition="overloaded"}']) == (1, 0)
            assert (told['sec_bound_used{bound="active"}'], told['sec_bound{bound="active"}']) == (1, 1)
            assert (told["sec_calls_in_progress"], told['sec_refused_total{bound="active"}']) == (1, 0)
            async with Client(c.members["n1"].address, timeout_s=2) as impatient:
                with pytest.raises(Overloaded):
                    await impatient.submit(chain("a"))
            told = await asyncio.to_thread(fetch)
            assert (told['sec_condition{condition="well"}'], told['sec_condition{condition="overloaded"}']) == (0, 1)
            assert told['sec_refused_total{bound="active"}'] >= 1
            world.gate.set()
            await client.wait("s1", timeout_s=20)
            assert (await asyncio.to_thread(fetch))['sec_sagas_owned{state="running"}'] == 0
        finally:
            await asyncio.to_thread(metrics.close)


async def test_versions_that_sagas_are_pinned_to_are_counted() -> None:
    world = World(do={"b": ["hold"] * 4})
    async with cluster("n1") as c, c.client() as client:
        metrics = Metrics(c.members["n1"].node, "127.0.0.1", 0)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

        def pinned() -> dict[str, float]:
            with opener.open(f"http://127.0.0.1:{metrics.port}/metrics", timeout=10) as answer:
                lines = [
                    line.rpartition(" ") for line in answer.read().decode().splitlines() if line.startswith("sec_sagas_pinned")
                ]
            return {name: float(value) for name, _, value in lines}

        try:
            await c.serve(world.server(actions=("plain", "step@1", "step@1.5")))
            for asked in ("step@1", "step", "step@=1", "plain"):
                await client.submit(Saga("s").append(action("a", asked)).append(action("b", asked)))
            await until(lambda: len(world.calls) == 8)
            assert await asyncio.to_thread(pinned) == {
                'sec_sagas_pinned{action="step@1.5"}': 2,
                'sec_sagas_pinned{action="step@1"}': 1,
            }
            world.gate.set()
            await until(lambda: not c.members["n1"].node.owner.drivers)
            assert await asyncio.to_thread(pinned) == {}
        finally:
            await asyncio.to_thread(metrics.close)


async def test_a_port_that_is_taken_is_named() -> None:
    async with cluster("n1") as c:
        node = c.members["n1"].node
        metrics = Metrics(node, "127.0.0.1", 0)
        try:
            with pytest.raises(CannotListen, match=f"cannot serve metrics at 127.0.0.1:{metrics.port}: "):
                Metrics(node, "127.0.0.1", metrics.port)
        finally:
            await asyncio.to_thread(metrics.close)
