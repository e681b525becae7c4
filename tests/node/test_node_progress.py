"""What actions report of how far they are, in the views of every SEC node; and actions that fall silent."""

import asyncio
from collections.abc import AsyncGenerator
from functools import partial

import pytest
from inprocess_support import cluster
from sec_client import NodeState, Progress, RetryPolicy, Saga, SagaState, action
from sec_client.aio import Client
from sec_client.kit import ActionServer, Call, MemoryStore
from waiting_support import eventually, until

from sec.core.records import NodePath
from sec.dispatch.calls import Report
from sec.node import reports as reports_module
from sec.node.reports import Reports, Timed, Told, told_from_proto, told_to_proto

A, B = NodePath("a"), NodePath("b")


class Copier:
    """Copies in steps: "copy" reports, and waits for the gate."""

    def __init__(self) -> None:
        self.server = ActionServer("copier", store=MemoryStore())
        self.calls: list[Call] = []
        self.gate = asyncio.Event()
        self.server.action("copy", undo=None)(self._copy)

    async def _copy(self, call: Call) -> None:
        self.calls.append(call)
        await call.report(0.4, "copied 40 of 100 GB")
        await self.gate.wait()


async def test_a_report_is_seen_at_every_node_and_written_nowhere() -> None:
    copier = Copier()
    saga = Saga("s").append(action("disk", "copy")).build()
    async with cluster("n1", "n2") as c, c.client() as client:
        await c.serve(copier.server)
        saga_id = (await client.submit(saga)).saga_id
        records = (await client.get(saga_id)).next_sequence
        for name in c.members:
            async with c.client(name) as one:
                progress = await eventually(partial(reported, one, saga_id))
            assert (progress.fraction, progress.message) == (0.4, "copied 40 of 100 GB")
            assert str(progress) == "40%: copied 40 of 100 GB"
            assert progress.time is not None
        assert (await client.get(saga_id)).next_sequence == records
        copier.gate.set()
        assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.DONE
        view = await client.get(saga_id)
        assert view["disk"].state is NodeState.DONE
        assert view["disk"].progress is None
        await until(lambda: not any(member.node.owner.reports.of(view.uid) for member in c.members.values()))


async def reported(client: Client, saga_id: str) -> Progress | None:
    return (await client.get(saga_id))["disk"].progress


async def test_a_report_is_lost_with_its_owner_until_the_next_one() -> None:
    copier = Copier()
    saga = Saga("s").append(action("disk", "copy")).build()
    async with cluster("n1", "n2") as c, c.client() as client:
        await c.serve(copier.server)
        saga_id = (await client.submit(saga)).saga_id
        await until(lambda: c.owner_of(saga_id))
        first = c.owner_of(saga_id)
        assert first is not None
        uid = (await client.get(saga_id)).uid
        other = next(member for member in c.members.values() if member is not first)
        await until(lambda: other.node.owner.reports.of(uid))
        await first.stop()
        await until(lambda: c.owner_of(saga_id) is other)
        await until(lambda: not other.node.owner.reports.of(uid))
        copier.calls[0].report(0.8)  # of the handler that is still at work, for whoever calls now
        await until(lambda: other.node.owner.reports.of(uid))
        assert other.node.owner.reports.of(uid)[NodePath("disk")].report == Report(0.8, "")
        copier.gate.set()
        assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.DONE
        assert len(copier.calls) == 1


async def test_an_action_that_falls_silent_is_called_again() -> None:
    policy = RetryPolicy(max_attempts=2, initial_backoff_s=0.01, max_backoff_s=0.02, attempt_timeout_s=3600, heartbeat_timeout_s=1)
    copier = Copier()
    saga = Saga("s").append(action("disk", "copy", retry=policy, undo_retry=policy)).build()
    async with cluster("n1") as c, c.client() as client:
        await c.serve(copier.server)
        saga_id = (await client.submit(saga)).saga_id
        assert (await client.wait(saga_id, timeout_s=20)).state in (SagaState.UNDONE, SagaState.STUCK)
        codes = {error.code for error in (await client.get(saga_id)).errors}
        copier.gate.set()
    assert "no_heartbeat" in codes


# What a node knows of the reports, by itself.


def timed(fraction: float, time_us: int = 1) -> Timed:
    return Timed(Report(fraction, ""), time_us)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports_module, "TELL_INTERVAL_S", 0.0)


@pytest.mark.usefixtures("soon")
async def test_a_peer_is_told_all_and_then_what_changes() -> None:
    reports = Reports()
    reports.put("u", A, timed(0.1))
    following: AsyncGenerator[list[Told], None] = reports.follow()
    assert await anext(following) == [Told(("u", A), timed(0.1))]
    reports.put("u", B, timed(0.2))
    reports.put("u", B, timed(0.3))
    reports.put("u", A, None)
    reports.put("u", A, None)
    assert await anext(following) == [Told(("u", B), timed(0.3)), Told(("u", A), None)]
    reports.end()
    with pytest.raises(StopAsyncIteration):
        await anext(following)


def test_what_peers_tell_is_forgotten_with_them() -> None:
    reports = Reports()
    reports.put("u", A, timed(0.1, 5))
    reports.heard("n2", [Told(("u", A), timed(0.2, 4)), Told(("u", B), timed(0.3))])
    assert reports.of("u") == {A: timed(0.1, 5), B: timed(0.3)}
    reports.heard("n2", [Told(("u", B), None)])
    assert reports.of("u") == {A: timed(0.1, 5)}
    reports.put("u", A, None)
    assert reports.of("u") == {A: timed(0.2, 4)}
    reports.lost("n2")
    reports.lost("n2")
    assert reports.of("u") == {}


def test_what_is_kept_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports_module, "MAX_REPORTS", 1)
    reports = Reports()
    reports.put("u", A, timed(0.1))
    reports.put("u", B, timed(0.1))
    reports.put("u", A, timed(0.2))
    assert reports.of("u") == {A: timed(0.2)}
    reports.put("u", A, None)
    reports.put("u", B, timed(0.1))
    assert reports.of("u") == {B: timed(0.1)}


def test_what_is_told_comes_as_it_was_said() -> None:
    told = [Told(("u", A), timed(0.0)), Told(("u", B), Timed(Report(None, "at work"), 7)), Told(("u", A), None)]
    assert told_from_proto(told_to_proto(told).reports) == told
