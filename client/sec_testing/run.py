"""One run of a saga in a test: how it stands, what was called, and what operators and others do to it."""

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sec_client import LogRecord, NodeError, NodeView, SagaState, SagaView, WrongState
from sec_client.payloads import encode
from sec_model.commands import Abort, Command, MarkUndone, NodePath, Pause, Resume, RetryUndo, Signal, SkipUndo, Step

from sec_testing.faults import AnyFault, Made, told
from sec_testing.world import NotSettled, World

if TYPE_CHECKING:
    from sec_testing.tester import SagaTester

LIMIT_S = 400 * 86_400.0
"""Of virtual time, for a saga to come to rest. A year costs some seconds."""
BY = "test"


class SagaRun:
    """A saga that was submitted. What it answers is as of now: let time pass by `wait`, or by `SagaTester.advance`."""

    def __init__(self, tester: "SagaTester", world: World, saga_id: str, faults: tuple[AnyFault, ...]) -> None:
        self.tester = tester
        self.saga_id = saga_id
        self.faults = faults
        """What was scripted for it."""
        self._world = world
        self._commands = 0

    # how it stands

    @property
    def view(self) -> SagaView:
        """The saga with all of its nodes, as `Client.get` answers it."""
        return self._world.drive(self._world.client.get(self.saga_id))

    def __getitem__(self, node: str) -> NodeView:
        """The node with this full path. Raises `KeyError`."""
        return self.view[node]

    @property
    def state(self) -> SagaState:
        return self.view.state

    @property
    def done(self) -> bool:
        """It has ended, and all of its actions took effect."""
        return self.state is SagaState.DONE

    @property
    def undone(self) -> bool:
        """It has ended, and no effect is left."""
        return self.state is SagaState.UNDONE

    @property
    def output(self) -> Any:
        """The output of its final node; None while there is none."""
        return self.view.output

    @property
    def errors(self) -> tuple[NodeError, ...]:
        """Every failure, unknown outcome and failed undo."""
        return self.view.errors

    @property
    def log(self) -> tuple[LogRecord, ...]:
        """Its saga log."""

        async def read() -> tuple[LogRecord, ...]:
            return tuple([record async for record in self._world.client.log(self.saga_id)])

        return self._world.drive(read())

    @property
    def calls(self) -> tuple[Made, ...]:
        """The calls that were made for it, in order."""
        return tuple(made for made in self._world.servers.calls if made.saga_id == self.saga_id)

    @property
    def order(self) -> list[str]:
        """The same in short: "hotel", "car", "undo hotel", …"""
        return [f"undo {made.node}" if made.undo else made.node for made in self.calls]

    def calls_of(self, node: str, *, undo: bool = False) -> tuple[Made, ...]:
        """Those of a node, to its action or to its undo action."""
        return tuple(made for made in self.calls if made.node == node and made.undo == undo)

    @property
    def missed(self) -> tuple[AnyFault, ...]:
        """What was scripted for it and has not struck: it did not come so far, or there are not so many calls or writes."""
        crashes, script = self._world.nodes.sagas[self.saga_id].crashes, self._world.servers.scripts[self.saga_id]
        return tuple(fault for fault in self.faults if fault in crashes or (fault in script.faults and fault not in script.struck))

    @property
    def writes(self) -> int:
        """How many writes its log is made of: `Crash` counts them."""
        return self._world.nodes.sagas[self.saga_id].writes

    @property
    def owner(self) -> str:
        """The SEC node that wrote to its log last."""
        return self._world.nodes.sagas[self.saga_id].owner

    def __str__(self) -> str:
        """All of it, for people: what was scripted, how it stands, its calls and its errors."""
        view = self.view
        paused = f", paused: {view.summary.pause_reason}" if view.summary.paused else ""
        lines = [f'saga "{self.saga_id}" is {view.state}{paused}; {told(self.faults)}']
        lines += [f"  {made}" for made in self.calls]
        lines += [f"  {node.node}: {node.state}" for node in view.nodes]
        lines += [f"  error: {error}" for error in view.errors]
        lines += [f"  did not come to pass: {fault}" for fault in self.missed]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<SagaRun {self.saga_id}: {self.state}, {told(self.faults)}>"

    # what is done

    def wait(self, *, within: float | timedelta = LIMIT_S) -> "SagaRun":
        """Lets time pass until the saga rests: it has ended, is stuck, or waits for somebody: for a signal, or to be resumed. Answers itself.

        That a signal does not come in time is for `SagaTester.advance` to bring about. When the saga has ended or is stuck, what is still on its way
        (calls that are late, or delivered again) has arrived too. Raises `NotSettled` when it does not rest within this (virtual) time, in seconds.
        """
        limit_s = within.total_seconds() if isinstance(within, timedelta) else within
        self._world.drive(self._rest(limit_s))
        return self

    async def _rest(self, limit_s: float) -> None:
        nodes, servers = self._world.nodes, self._world.servers
        if not await self._world.until(lambda: nodes.rests(self.saga_id), limit_s):
            view = await self._world.client.get(self.saga_id)
            stands = ", ".join(f"{node.node} is {node.state}" + (f" ({node.detail})" if node.detail else "") for node in view.nodes)
            raise NotSettled(f'Saga "{self.saga_id}" is {view.state} after {limit_s:g} s of virtual time, and goes on: {stands}.')
        if nodes.settled(self.saga_id):
            await servers.all_arrived(self.saga_id)

    def command(self, command: Command) -> "SagaRun":
        """Gives it a command of an operator (`sec_model.commands`), and lets its owner take it up. Answers itself; time passes as little as it has to.

        Raises `WrongState` when it makes no sense as the saga stands, or no sense any more when it was taken up.
        """
        self._commands += 1
        self._world.drive(self._command(command, f"{BY}-{self._commands}"))
        return self

    async def _command(self, command: Command, command_id: str) -> None:
        client, state = self._world.client, self._world.nodes.sagas[self.saga_id].state
        await client.command(self.saga_id, command, by=BY, command_id=command_id)
        if self._world.nodes.not_started(self.saga_id):
            return  # it takes them up when it is started
        await self._world.until(lambda: command_id in state.commands or state.course.ended, LIMIT_S)
        async for record in client.log(self.saga_id):
            if record.fields.get("command_id") == command_id and (refused := record.fields.get("refused")):
                raise WrongState(refused, code="wrong_state", saga_id=self.saga_id)

    def start(self) -> "SagaRun":
        """Starts it, when it was submitted with `start=False`."""
        self._world.drive(self._world.client.start(self.saga_id))
        return self

    def pause(self, reason: str = "test") -> "SagaRun":
        return self.command(Pause(reason))

    def resume(self) -> "SagaRun":
        return self.command(Resume())

    def abort(self, reason: str = "test") -> "SagaRun":
        return self.command(Abort(reason))

    def step(self) -> "SagaRun":
        """Starts one node, of a saga that is paused."""
        return self.command(Step())

    def signal(self, node: str, value: Any = None) -> "SagaRun":
        """Sends the event that a signal node waits for: a JSON value, bytes or a `Payload`."""
        return self.command(Signal(NodePath(node), encode(value)))

    def retry_undo(self, node: str) -> "SagaRun":
        return self.command(RetryUndo(NodePath(node)))

    def skip_undo(self, node: str, reason: str = "test") -> "SagaRun":
        return self.command(SkipUndo(NodePath(node), reason))

    def mark_undone(self, node: str, reason: str = "test") -> "SagaRun":
        return self.command(MarkUndone(NodePath(node), reason))

    def crash_owner(self) -> "SagaRun":
        """The SEC node that owns it dies, now. Another one takes over when time passes. Raises `ValueError` when nobody owns it."""
        self._world.nodes.crash_owner(self.saga_id)
        return self

    def until(self, holds: Callable[["SagaRun"], bool], *, within: float = LIMIT_S) -> "SagaRun":
        """Lets time pass until something holds of it, which is looked at after each record of a log, and when a call is made, begins, or has its answer.

        Answers itself. Raises `NotSettled` when it does not come within this (virtual) time.
        """
        while True:
            seen = self._world.changes
            if holds(self):
                return self
            if not self._world.drive(self._world.until(lambda: self._world.changes != seen, within)):  # noqa: B023 # it is called here only
                raise NotSettled(f"What was waited for does not come, within {within:g} s of virtual time.\n{self}")
