"""The checks for which the server is started, stopped and killed: they run by themselves, with the command that starts it."""

import asyncio
import os
import shlex
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import grpc
import grpc.aio
from sec_client.transport import Tls

from secctl.conformance.batches import takes_batches
from secctl.conformance.checks import SLOW_MS, Check
from secctl.conformance.probe import Breach, Failure, Output, Server, Status, Trial, connected
from secctl.conformance.stream import Stream

_POLL_S = 0.05


class NotStarted(Exception):
    """The command did not bring a server up at the address. The message is a sentence."""


@dataclass(frozen=True, slots=True)
class Program:
    """How a server is started, and where it then listens. It must listen there each time, and keep its data from one time to the next."""

    command: str
    address: str
    tls: Tls | None
    patience_s: float

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Running"]:
        """Starts it, and returns once it answers; it is killed in the end. Raises `NotStarted`."""
        try:
            process = await asyncio.create_subprocess_exec(
                *shlex.split(self.command), stdin=asyncio.subprocess.DEVNULL, start_new_session=True
            )
        except (OSError, ValueError) as e:
            raise NotStarted(f'"{self.command}" cannot be started: {e}.') from None
        try:
            async with connected(self.address, self.tls, self.patience_s) as server:
                await self._comes_up(process, server)
                yield Running(process, server, self.patience_s)
        finally:
            _signal_group(process, signal.SIGKILL)
            await process.wait()

    async def _comes_up(self, process: asyncio.subprocess.Process, server: Server) -> None:
        end = asyncio.get_running_loop().time() + self.patience_s
        while True:
            try:
                await server.describe()
            except grpc.aio.AioRpcError as e:
                if process.returncode is not None:
                    raise NotStarted(f'"{self.command}" has ended with {process.returncode}.') from None
                if asyncio.get_running_loop().time() > end:
                    raise NotStarted(
                        f'"{self.command}" does not answer at {self.address}: {e.code().name} ({e.details()}).'
                    ) from None
                await asyncio.sleep(_POLL_S)
            else:
                return


@dataclass(frozen=True, slots=True)
class Running:
    """A server that runs, and a connection to it."""

    process: asyncio.subprocess.Process
    server: Server
    patience_s: float

    async def kill(self) -> None:
        """As a crash would."""
        _signal_group(self.process, signal.SIGKILL)
        await self.process.wait()

    async def stop(self) -> None:
        """Tells it to stop, and waits until it has. Raises `Breach` when it does not."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(self.patience_s):
                await self.process.wait()
        except TimeoutError:
            raise Breach(f"The server did not end within {self.patience_s:g} s after SIGTERM.") from None

    async def slow_do(self, trial: Trial) -> asyncio.Future[object]:
        """A do that takes a while, and that has reached the server."""
        slow: asyncio.Future[object] = asyncio.ensure_future(self.server.send(trial.do_message("slow", amount=3, sleep_ms=SLOW_MS)))
        await self.server.caught_up()
        return slow


def _signal_group(process: asyncio.subprocess.Process, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


async def remembers_over_a_crash(program: Program) -> None:
    """Answers, undos and epochs are known after a crash."""
    async with program.running() as running:
        trial = Trial(running.server, epoch=5)
        first = await trial.has_effect("a", amount=3)
        failure = await trial.do("b", amount=4, fail=1)
        await trial.is_undone("c", amount=5)
        done = await trial.has_effect("d", amount=6)
        await trial.undo("d", amount=6, undo_fail=1, output=done.payload)
        trial.epoch = 9
        await trial.do("a", amount=3)
        await running.kill()
    async with program.running() as running:
        again = Trial(running.server, trial.uid, epoch=9)
        stale = await again.do("e", amount=7, epoch=8)
        if not isinstance(stale, Status) or stale.code is not grpc.StatusCode.FAILED_PRECONDITION:
            raise Breach(f"After a crash a do in epoch 8, after one in epoch 9 before it, answered {stale}.")
        for key, before in (("a", first), ("b", failure)):
            after = await again.do(key, amount=3 if key == "a" else 4)
            if not isinstance(before, Output | Failure) or not isinstance(after, Output | Failure) or after.raw != before.raw:
                raise Breach(f"After a crash a repeated do answered {after}; before it the answer was {before}.")
        late = await again.do("c", amount=5)
        if not isinstance(late, Failure):
            raise Breach(f"After a crash a do, whose undo came before it, answered {late}, and not a failure.")
        found = await Trial(running.server, f"{trial.uid}", epoch=9).do("read", action="conformance.balance")
        if not isinstance(found, Output) or found.payload.data.strip() != b"9":
            raise Breach(f"After a crash the balance is {found}; it must be 9.")
        await again.is_undone("d", amount=6, output=done.payload, attempt=2)


async def effect_is_had_once_over_a_crash(program: Program) -> None:
    """A do that was in hand when the server crashed has its effect once when it is repeated."""
    async with program.running() as running:
        trial = Trial(running.server)
        slow = await running.slow_do(trial)
        await running.kill()
        await slow
    async with program.running() as running:
        again = Trial(running.server, trial.uid, epoch=2)
        await again.has_effect("slow", amount=3, attempt=2)
        await again.adds_up_to(3, "after a do of 3 that was in hand at a crash, and was repeated")
        await again.is_undone("slow", amount=3)
        await again.adds_up_to(0, "after its undo")


async def stops_gracefully(program: Program) -> None:
    """A server that is told to stop answers the calls that it has in hand, and ends."""
    async with program.running() as running:
        slow = await running.slow_do(Trial(running.server))
        await running.stop()
        answer = await slow
    if not isinstance(answer, Output):
        raise Breach(f"A do of {SLOW_MS} ms that was in hand at SIGTERM answered {answer}, and not its output.")


async def ends_its_streams(program: Program) -> None:
    """A server that is told to stop answers the calls that it has in hand from a stream, and ends the stream with OK."""
    async with program.running() as running:
        await takes_batches(running.server)
        async with Stream(running.server) as stream:
            with stream.blamed():
                pending = await stream.write([Trial(running.server).do_message(amount=3, sleep_ms=SLOW_MS) for _ in range(3)])
                await running.server.caught_up()
                await running.stop()
                answers = await stream.answers(pending)
                status = await stream.ended()
    for answer in answers:
        if not isinstance(answer, Output):
            raise Breach(f"A do of {SLOW_MS} ms that was in hand at SIGTERM, from a stream, answered {answer}, and not its output.")
    if status is not grpc.StatusCode.OK:
        raise Breach(f"At SIGTERM a stream ended with {status.name}, and not with OK.")


LIFECYCLE: list[Check[Program]] = [
    Check(clause, function.__doc__ or "", function)
    for clause, function in (
        ("durable", remembers_over_a_crash),
        ("durable", effect_is_had_once_over_a_crash),
        ("graceful-stop", stops_gracefully),
        ("batch-stop", ends_its_streams),
    )
]
