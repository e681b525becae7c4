"""Runs checks and collects what came of them."""

import asyncio
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import grpc.aio
from sec_client.transport import Tls

from secctl.conformance.batches import BATCHES
from secctl.conformance.checks import CHECKS, Check, NotApplicable, NotOffered
from secctl.conformance.lifecycle import LIFECYCLE, NotStarted, Program
from secctl.conformance.probe import Breach, Server, connected

AT_ONCE = 8
"""Checks that run at the same time: most of them wait, and the bound keeps a small server from being too busy."""
S = TypeVar("S")


class Verdict(StrEnum):
    """What came of a check."""

    KEPT = "kept"
    BROKEN = "broken"
    NOT_CHECKED = "not checked"
    NOT_OFFERED = "not offered"
    """It is of something optional, which the server does without."""


@dataclass(frozen=True, slots=True)
class Result:
    """`why` is empty for a clause that is kept."""

    clause: str
    says: str
    verdict: Verdict
    why: str
    seconds: float


_OF_A_RUNNING_ONE = (*CHECKS, *BATCHES)
CLAUSES = tuple(dict.fromkeys([*(one.clause for one in _OF_A_RUNNING_ONE), *(one.clause for one in LIFECYCLE)]))
"""The clauses of the contract that are checked, by their names in protos/sec/v1/action_server.proto."""


async def check_server(
    address: str,
    *,
    tls: Tls | None = None,
    command: str | None = None,
    clauses: Collection[str] = CLAUSES,
    patience_s: float = 30.0,
) -> Sequence[Result]:
    """Checks the server at the address, in the order of the checks. With `command`, which starts it there, also what a stop and a crash do to it.

    `patience_s` bounds each call with its repetitions, and each start and stop. Raises `NotStarted`, also when nothing can be reached at the
    address; `SagaError` for TLS files that cannot be read.
    """
    checks = [one for one in _OF_A_RUNNING_ONE if one.clause in clauses]
    lifecycle = [one for one in LIFECYCLE if one.clause in clauses]
    if command is None:
        found = await _check_running(address, tls, checks, patience_s)
        why = "Say by --run how the server is started, so that it can be stopped and killed."
        return [*found, *(Result(one.clause, one.says, Verdict.NOT_CHECKED, why, 0.0) for one in lifecycle)]
    program = Program(command, address, tls, patience_s)
    async with program.running():
        found = await _check_running(address, tls, checks, patience_s)
    return [*found, *[await _one(one, program) for one in lifecycle]]


async def _check_running(address: str, tls: Tls | None, checks: Sequence[Check[Server]], patience_s: float) -> list[Result]:
    async with connected(address, tls, patience_s) as server:
        try:
            await server.describe()
        except grpc.aio.AioRpcError as e:
            raise NotStarted(f"No action server can be reached at {address}: {e.code().name} ({e.details()}).") from None
        room = asyncio.Semaphore(AT_ONCE)

        async def in_turn(one: Check[Server]) -> Result:
            async with room:
                return await _one(one, server)

        return await asyncio.gather(*(in_turn(one) for one in checks))


async def _one(one: Check[S], subject: S) -> Result:
    begun = time.monotonic()
    verdict, why = Verdict.KEPT, ""
    try:
        await one.run(subject)
    except Breach as e:
        verdict, why = Verdict.BROKEN, str(e)
    except NotApplicable as e:
        verdict, why = Verdict.NOT_CHECKED, str(e)
    except NotOffered as e:
        verdict, why = Verdict.NOT_OFFERED, str(e)
    except grpc.aio.AioRpcError as e:
        verdict, why = Verdict.BROKEN, f"A call that has to work ended with {e.code().name} ({e.details()})."
    return Result(one.clause, one.says, verdict, why, time.monotonic() - begun)
