"""A saga that unwinds tells the action servers that it does not want what they still do."""

import asyncio
from collections.abc import Awaitable, Callable

from inprocess_support import FAST, cluster
from sec_client import NodeState, Saga, SagaState, action
from sec_client.kit import ActionFailed, ActionServer, Call, Incoming, MemoryStore, Response, Status
from sec_model.commands import Abort
from waiting_support import until


class Patient:
    """An action server: "hold" waits until nobody wants it or, when it is `deaf`, for the gate. "fail" fails. It notes calls as they arrive."""

    def __init__(self, *, deaf: bool = False) -> None:
        self.server = ActionServer("patient", store=MemoryStore(), middleware=self._note)
        self.arrived: list[tuple[str, int, bool]] = []
        self.begun: list[Call] = []
        self.undone: list[str] = []
        self.gate = asyncio.Event()
        self._deaf = deaf
        self.server.action("hold", undo=self._undo)(self._hold)
        self.server.action("fail", undo=None)(self._fail)
        self.server.action("step", undo=None)(lambda call: None)

    async def _note(self, incoming: Incoming, deliver: Callable[[], Awaitable[Response | Status]]) -> Response | Status:
        about = incoming.message.call
        self.arrived.append((about.node, about.epoch, about.cancelled))
        return await deliver()

    async def _hold(self, call: Call) -> None:
        self.begun.append(call)
        if self._deaf:
            await self.gate.wait()
            return
        await call.wait_cancelled()
        call.raise_if_cancelled()

    async def _fail(self, call: Call) -> None:
        await self.gate.wait()
        raise ActionFailed("It fails.")

    async def _undo(self, call: Call) -> None:
        self.undone.append(call.node)


async def test_an_action_under_way_ends_early_when_its_saga_is_aborted() -> None:
    patient = Patient()
    saga = Saga("s").append(action("long", "hold", retry=FAST)).build()
    async with cluster("n1") as c, c.client() as client:
        await c.serve(patient.server)
        saga_id = (await client.submit(saga)).saga_id
        await until(lambda: patient.begun)
        await client.command(saga_id, Abort("changed our mind"))
        assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.UNDONE
        view = await client.get(saga_id)
    assert view["long"].state is NodeState.FAILED
    assert view["long"].error is not None
    assert view["long"].error.code == "cancelled"
    assert not patient.undone


async def test_the_others_end_early_when_one_branch_fails() -> None:
    patient = Patient()
    saga = Saga("s")
    saga.append_parallel(*(action(name, "hold", retry=FAST) for name in ("b", "c")), action("bad", "fail", retry=FAST))
    saga.append(action("end", "step"))
    async with cluster("n1") as c, c.client() as client:
        await c.serve(patient.server)
        saga_id = (await client.submit(saga.build())).saga_id
        await until(lambda: len(patient.begun) == 2)
        patient.gate.set()
        assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.UNDONE
        assert {(e.node, e.code) for e in (await client.get(saga_id)).errors} == {
            ("bad", ""),
            ("b", "cancelled"),
            ("c", "cancelled"),
        }


async def test_an_action_that_does_not_listen_is_waited_for_and_undone() -> None:
    patient = Patient(deaf=True)
    saga = Saga("s").append(action("long", "hold", retry=FAST)).build()
    async with cluster("n1") as c, c.client() as client:
        await c.serve(patient.server)
        saga_id = (await client.submit(saga)).saga_id
        await until(lambda: patient.begun)
        await client.command(saga_id, Abort(""))
        await until(lambda: patient.begun[0].cancelled)
        patient.gate.set()
        assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.UNDONE
    assert patient.undone == ["long"]


async def test_a_new_owner_of_a_saga_that_unwinds_says_so_with_its_call() -> None:
    patient = Patient(deaf=True)
    async with cluster("n1", "n2") as c, c.client() as client:
        await c.serve(patient.server)
        saga_id = (await client.submit(Saga("s").append(action("long", "hold", retry=FAST)).build())).saga_id
        await until(lambda: patient.begun)
        await client.command(saga_id, Abort(""))
        await until(lambda: patient.begun[0].cancelled)
        owner = c.owner_of(saga_id)
        assert owner is not None
        await client.drain(str(owner.node.settings.name))
        await until(lambda: len(patient.arrived) == 2)
        patient.gate.set()
        assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.UNDONE
    (_, first, told_first), (_, second, told_then), *_ = patient.arrived
    assert (told_first, told_then) == (False, True)
    assert first < second


async def test_a_new_owner_of_a_saga_that_goes_forward_wants_what_its_action_does() -> None:
    """That an owner let go of a saga says nothing about its effects: an action that ended early for that would make the saga unwind."""
    patient = Patient(deaf=True)
    async with cluster("n1", "n2") as c, c.client() as client:
        await c.serve(patient.server)
        saga_id = (await client.submit(Saga("s").append(action("long", "hold", retry=FAST)).build())).saga_id
        await until(lambda: patient.begun)
        owner = c.owner_of(saga_id)
        assert owner is not None
        await client.drain(str(owner.node.settings.name))
        await until(lambda: len(patient.arrived) == 2)
        assert not patient.begun[0].cancelled
        patient.gate.set()
        assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.DONE
    assert [told for _, _, told in patient.arrived] == [False, False]
