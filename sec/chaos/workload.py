"""The sagas of a plan: submits them, gives their commands, watches them, and lets them settle in the end. All of it goes into the history."""

import asyncio
import contextlib
import itertools
from collections.abc import Sequence
from contextlib import aclosing

from google.protobuf.json_format import MessageToDict
from sec_client import NodeState, Payload, SagaError, SagaNotFound, SagaState
from sec_client import aio as sec_aio
from sec_model.commands import Command, NodePath, Resume, Signal
from sec_model.commands_codec import command_to_proto

from sec.chaos.faults import Situation
from sec.chaos.history import Answer, ClientCall, Observed, Read, Writer, now_us
from sec.chaos.plan import SHAPES, SIGNALS, PlannedSaga

READ_EVERY_S = 0.3
"""A saga that is watched is read too, each time at another SEC node."""
SETTLE_EVERY_S = 0.5
_UNSETTLED = (SagaState.CREATED, SagaState.RUNNING, SagaState.UNWINDING)


class Workload:
    """Runs sagas through several clients, so that every SEC node is called."""

    def __init__(self, clients: Sequence[sec_aio.Client], situation: Situation, history: Writer) -> None:
        self._clients = itertools.cycle(clients)
        self._situation, self._history = situation, history
        self._shapes: dict[str, str] = {}
        self._given = itertools.count(1)
        self._observers: list[asyncio.Task[None]] = []

    @property
    def saga_ids(self) -> tuple[str, ...]:
        """The sagas that the cluster may have, in the order of their submits."""
        return tuple(self._shapes)

    async def run(self, planned: PlannedSaga) -> None:
        """Submits a saga, now, and gives its commands. Returns when all have been given."""
        answer = await self._submit(planned)
        if answer is Answer.REFUSED:
            return
        self._situation.last_saga = planned.saga_id
        if planned.watched:
            self._observers += [asyncio.create_task(look(planned.saga_id)) for look in (self._watch, self._read)]
        passed_s = 0.0
        for given in planned.commands:
            await asyncio.sleep(given.after_s - passed_s)
            passed_s = given.after_s
            await self.give(planned.saga_id, given.command)

    async def give(self, saga_id: str, command: Command) -> None:
        """Gives a command under an id of its own."""
        command_id = f"{saga_id}-command-{next(self._given)}"
        written = MessageToDict(command_to_proto(command), preserving_proto_field_name=True)
        start_us, answer, detail = now_us(), Answer.UNKNOWN, ""
        try:
            await next(self._clients).command(saga_id, command, by="chaos", command_id=command_id)
            answer = Answer.OK
        except SagaError as error:
            answer, detail = _answer_of(error), str(error)
        finally:
            self._history.write(ClientCall("command", saga_id, start_us, now_us(), answer, detail, command_id, written))

    async def settle(self) -> None:
        """Resumes what is paused and sends the signals that are waited for, until all sagas have ended or are stuck."""
        while True:
            try:
                unsettled = [saga async for saga in next(self._clients).list(states=_UNSETTLED)]
                if not unsettled:
                    return
                for saga in unsettled:
                    if saga.paused:
                        await self.give(saga.saga_id, Resume())
                    elif signal := SIGNALS.get(self._shapes.get(saga.saga_id, "")):
                        await self._signal(saga.saga_id, signal)
            except SagaError:
                pass  # the bound of the run says when it is enough
            await asyncio.sleep(SETTLE_EVERY_S)

    async def close(self) -> None:
        """Ends the watches and reads that are still on."""
        for observer in self._observers:
            observer.cancel()
        await asyncio.gather(*self._observers, return_exceptions=True)

    async def _signal(self, saga_id: str, node: str) -> None:
        view = await next(self._clients).get(saga_id, outputs=False)
        if any(each.node == node and each.state is NodeState.WAITING for each in view.nodes):  # a corrupt saga has no nodes
            await self.give(saga_id, Signal(NodePath(node), Payload.json({"ok": True})))

    async def _submit(self, planned: PlannedSaga) -> Answer:
        start_us, answer, detail = now_us(), Answer.UNKNOWN, ""
        self._shapes[planned.saga_id] = planned.shape
        try:
            await next(self._clients).submit(
                SHAPES[planned.shape],
                params=planned.manner.to_params(),
                saga_id=planned.saga_id,
                labels={"shape": planned.shape},
            )
            answer = Answer.OK
        except SagaError as error:
            answer, detail = _answer_of(error), str(error)
        finally:
            self._history.write(ClientCall("submit", planned.saga_id, start_us, now_us(), answer, detail))
        return answer

    async def _watch(self, saga_id: str) -> None:
        watcher = f"watch of {saga_id}"
        with contextlib.suppress(SagaError):
            async with aclosing(next(self._clients).watch(saga_id)) as records:
                async for r in records:
                    self._history.write(Observed(watcher, saga_id, r.sequence, r.epoch, r.writer, r.kind, now_us()))

    async def _read(self, saga_id: str) -> None:
        reader = f"reads of {saga_id}"
        ended = False
        while not ended:
            start_us = now_us()
            try:
                view = await next(self._clients).get(saga_id, outputs=False)
            except SagaNotFound:  # its submit had no effect
                return
            except SagaError:
                pass
            else:
                self._history.write(Read(reader, saga_id, view.next_sequence, start_us, now_us()))
                ended = view.state.settled
            await asyncio.sleep(READ_EVERY_S)


def _answer_of(error: SagaError) -> Answer:
    return Answer.REFUSED if error.definite and not error.repeated else Answer.UNKNOWN
