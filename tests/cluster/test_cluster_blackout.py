"""Everything is killed at once: SEC nodes, action server, etcd. What was acknowledged before is there when they are started again."""

import asyncio
from pathlib import Path

import pytest
from cluster_support import stage_of
from sec_client import Saga, SagaError, SagaState, action
from sec_client import aio as sec_aio
from waiting_support import until

from sec.dev.cluster import DevCluster
from sec.dev.etcd import find_etcd
from sec.store.etcd.versions import sound

CHAIN = Saga("chain").append(action("a", "step")).append(action("b", "step")).append(action("c", "step")).build()
ENOUGH = 60


async def test_nothing_that_was_acknowledged_is_lost_when_all_processes_are_killed(tmp_path: Path) -> None:
    version = find_etcd().version
    if not sound(version):
        pytest.skip(
            f"etcd {version} can lose what it acknowledged when it is killed. Put a sound one on PATH: Debian's etcd-server, say."
        )
    acknowledged: dict[str, list[str]] = {}
    with DevCluster(tmp_path / "sec", lease_ttl_s=2) as cluster:

        async def submit(worker: int) -> None:
            """Submits sagas until it is told to stop: every third fails at its end, and every fourth has to wait in the middle."""
            async with sec_aio.Client([cluster.addresses[worker % 3]]) as client:
                for number in range(10_000):
                    saga_id = f"saga-{worker}-{number}"
                    params = {"fail": ["c"] if number % 3 == 0 else [], "hold": ["b"] if number % 4 == 0 else []}
                    await client.submit(CHAIN, saga_id=saga_id, params=params)
                    acknowledged[saga_id] = params["fail"]

        async with stage_of(cluster, tmp_path) as stage:
            workers = [asyncio.create_task(submit(worker)) for worker in range(6)]
            await until(lambda: len(acknowledged) >= ENOUGH)
            assert cluster.etcd is not None
            assert stage.effects is not None
            stage.effects.kill()
            cluster.etcd.kill()
            for name in cluster.names:
                cluster.kill(name)
            before = dict(acknowledged)
            for worker in workers:
                worker.cancel()
            ended = await asyncio.gather(*workers, return_exceptions=True)
            assert all(isinstance(end, SagaError | asyncio.CancelledError) for end in ended)

            cluster.etcd.restart()
            for name in cluster.names:
                cluster.launch(name)
            cluster.wait_serving()
            stage.restart_effects()
            stage.gate.touch()
            async with stage.client() as client:
                results = await asyncio.gather(*(client.wait(saga_id, timeout_s=120) for saga_id in before))
            for (saga_id, fails), result in zip(before.items(), results, strict=True):
                assert result.state is (SagaState.UNDONE if fails else SagaState.DONE)
                assert stage.inventory(saga_id) == ([] if fails else ["a", "b", "c"])
                assert stage.done(saga_id) == ({"a": 1, "b": 1} if fails else {"a": 1, "b": 1, "c": 1})
