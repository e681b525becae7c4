"""Many watchers at one SEC node, over a real etcd that counts its watches."""

import asyncio
import urllib.request
from pathlib import Path

from cluster_support import counting_server
from sec_client import Saga, SagaState, action, signal
from sec_client import aio as sec_aio
from sec_model import Payload
from sec_model.commands import NodePath, Signal
from waiting_support import eventually, until

from sec.dev.cluster import DevCluster

WATCHERS = 1_000
SAGAS = 20


def watches(endpoint: str) -> int:
    """How many watches a member of etcd serves."""
    with urllib.request.urlopen(f"{endpoint}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return next(int(float(line.split()[1])) for line in lines if line.startswith("etcd_debugging_mvcc_watcher_total "))


async def test_a_thousand_watchers_are_one_watch_of_etcd(tmp_path: Path) -> None:
    with DevCluster(tmp_path / "cluster", nodes=1) as cluster:
        (endpoint,) = cluster.etcd_endpoints
        async with sec_aio.Client(cluster.addresses) as client, counting_server(cluster.addresses, "quick"):
            held = Saga("held").append(action("a", "quick")).append(signal("go")).append(action("b", "quick")).build()
            saga_ids = [(await client.submit(held)).saga_id for _ in range(SAGAS)]
            seen = [list[str]() for _ in range(WATCHERS)]

            async def watch(number: int) -> None:
                async for record in client.watch(saga_ids[number % SAGAS]):
                    seen[number].append(record.kind)

            for saga_id in saga_ids:

                async def waits(saga_id: str = saga_id) -> bool:
                    return (await client.get(saga_id))["a"].output is not None

                await eventually(waits)
            before = await asyncio.to_thread(watches, endpoint)
            watching = [asyncio.create_task(watch(number)) for number in range(WATCHERS)]
            await until(lambda: all("succeeded" in kinds for kinds in seen))
            assert await asyncio.to_thread(watches, endpoint) == before + 1
            for saga_id in saga_ids:
                await client.command(saga_id, Signal(NodePath("go"), Payload.json(None)))
                assert (await client.wait(saga_id, timeout_s=30)).state is SagaState.DONE
            await asyncio.wait_for(asyncio.gather(*watching), 30)
            assert {kinds[-1] for kinds in seen} == {"done"}
            assert len({tuple(kinds) for kinds in seen}) == 1, "each has seen all of it, once"

            async def given_up() -> bool:
                return await asyncio.to_thread(watches, endpoint) == before

            await eventually(given_up)
