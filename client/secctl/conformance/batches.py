"""The checks of `Batch`, of a server that takes batches. What a call means is checked by the checks of calls: all of them are made again, by a stream."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import grpc
from sec_protos.v1 import common_pb2

from secctl.conformance import checks
from secctl.conformance.checks import LONG_MS, SLOW_MS, Check, NotApplicable, NotOffered, same
from secctl.conformance.probe import (
    BALANCE,
    ECHO,
    Answer,
    Breach,
    Failure,
    Message,
    Output,
    Server,
    Status,
    Trial,
    Undone,
    number_in,
    output_of,
)
from secctl.conformance.stream import MAX_BYTES, MAX_CALLS, Pending, Stream, StreamingServer, is_busy

BATCHES: list[Check[Server]] = []
AT_ONCE = 8
_NONE = "conformance.none"
_ECHOED_EVERY = 10
_OF_CALLS = frozenset(one.clause for one in checks.CHECKS) - {"describe", "health"}


def check(clause: str) -> Callable[[Callable[[Stream], Awaitable[None]]], Callable[[Stream], Awaitable[None]]]:
    """Adds a function to the checks, as in `checks`. It gets a stream of its own."""

    def add(function: Callable[[Stream], Awaitable[None]]) -> Callable[[Stream], Awaitable[None]]:
        async def run(server: Server) -> None:
            await takes_batches(server)
            async with Stream(server) as stream:
                with stream.blamed():
                    await function(stream)

        BATCHES.append(Check(clause, function.__doc__ or "", run))
        return function

    return add


async def takes_batches(server: Server) -> None:
    """Raises `NotOffered`."""
    if not (await server.describe()).batches:
        raise NotOffered("By its Describe the server takes no batches. SEC nodes call it by Do and Undo.")


@check("batch-answers")
async def each_has_its_own_answer(stream: Stream) -> None:
    """Each call of a message is answered once, by its id, with an answer or a status of its own."""
    owned = Trial(stream.server, epoch=5)
    await owned.has_effect("before", amount=1)
    calls: list[tuple[str, Message, str]] = [
        ("a do of an action that is not offered", owned.do_message("x", action=_NONE), "UNIMPLEMENTED"),
        ("an undo in an epoch that has passed", owned.undo_message("y", amount=1, epoch=4), "FAILED_PRECONDITION"),
    ]
    for number in range(1, AT_ONCE + 1):
        saga, says = Trial(stream.server), f"Number {number} is not to be had."
        calls += [
            (f"a do of {number} in a saga of its own", saga.do_message(amount=number), str(number)),
            ("an undo that came first", saga.undo_message("never", amount=1), "OK"),
            (f"a do that fails with {says!r}", saga.do_message("fails", amount=1, fail=1, message=says), says),
        ]
    found = await stream.settle([message for _, message, _ in calls])
    for (what, _, right), answer in zip(calls, found, strict=True):
        if _gist(answer) != right:
            raise Breach(f"In a message of {len(calls)} calls {what} answered {answer}.")


@check("batch-answers")
async def ids_are_whole(stream: Stream) -> None:
    """The ids of calls are whole numbers of 64 bits."""
    for first in (2**53 + 1, 2**64 - 3):
        async with Stream(stream.server, first) as other:
            with other.blamed():
                for answer in await other.settle([Trial(stream.server).do_message(action=BALANCE) for _ in range(2)]):
                    output_of(answer, f"A do whose id was not below {first}")


@check("batch-apart")
async def slow_keeps_no_other(stream: Stream) -> None:
    """A call that is slow keeps no other call of its message from its answer."""
    await _slow_keeps(stream, together=True)


@check("batch-apart")
async def slow_keeps_no_message(stream: Stream) -> None:
    """A call that is slow keeps the calls of later messages neither from being begun nor from being answered."""
    await _slow_keeps(stream, together=False)


async def _slow_keeps(stream: Stream, *, together: bool) -> None:
    for sleep_ms in LONG_MS:  # what is only slow has another try
        slow = Trial(stream.server).do_message(amount=1, sleep_ms=sleep_ms)
        others = [Trial(stream.server).do_message(action=BALANCE) for _ in range(3)]
        if together:
            pending = await stream.write([slow, *others])
        else:
            pending = [*await stream.write([slow]), *await stream.write(others)]
        await stream.answers(pending[1:])
        if not pending[0].done():
            return
        if is_busy(pending[0].result()):
            raise NotApplicable("The server has no room for the calls of this check.")
    where = "of its message" if together else "of the next message"
    raise Breach(f"The calls {where} are not answered before a call of {sleep_ms} ms is.")


@check("batch-same")
async def means_the_same(stream: Stream) -> None:
    """Each call means exactly what it means by itself: all checks of calls hold for calls by a stream."""
    (first,) = await stream.settle([Trial(stream.server).do_message(action=BALANCE)])
    output_of(first, "A do by a stream")
    server = StreamingServer(stream.server)
    room = asyncio.Semaphore(AT_ONCE)

    async def broken(one: Check[Server]) -> str:
        async with room:
            try:
                await one.run(server)
            except Breach as e:
                return f"[{one.clause}] {e}"
            except NotApplicable:
                pass
            return ""

    try:
        with server.stream.blamed():
            found = await asyncio.gather(*(broken(one) for one in checks.CHECKS if one.clause in _OF_CALLS))
    finally:
        await server.stream.break_off()
    told = [each for each in found if each]
    if told:
        more = f" ({len(told) - 1} more checks find the like.)" if len(told) > 1 else ""
        raise Breach(f"By a stream {told[0]}{more}")


@check("batch-same")
async def repeated_in_another_message(stream: Stream) -> None:
    """A do that comes again in another message, or in the same, has its effect once, and is answered alike."""
    trial = Trial(stream.server)
    do = trial.do_message(amount=3, sleep_ms=20)
    pending = [*await stream.write([do, do]), *await stream.write([do])]
    await _alike(trial, await stream.answers(pending), do, "A do that came three times in two messages")
    await trial.adds_up_to(3, "after a do of 3 that came three times in two messages")


@check("batch-same")
async def beside_do_and_undo(stream: Stream) -> None:
    """A call that comes by a stream and by itself at the same time has the effect of one, and is answered alike."""
    trial = Trial(stream.server)
    for key in ("a", "b"):
        do = trial.do_message(key, amount=3, sleep_ms=20)
        alone, pending = await asyncio.gather(stream.server.send(do), stream.write([do, do]))
        found = [alone, *await stream.answers(pending)]
        await _alike(trial, found, do, "A do that came by itself and twice by a stream")
    await trial.adds_up_to(6, "after two dos of 3 that came by themselves and by a stream at the same time")
    undo = trial.undo_message("a", amount=3)
    alone, pending = await asyncio.gather(trial.undo("a", amount=3), stream.write([undo]))
    for answer in (alone, *await stream.answers(pending)):
        if not isinstance(answer, Undone) and not is_busy(answer):
            raise Breach(f"An undo that came by itself and by a stream at the same time answered {answer}, and not OK.")
    await trial.adds_up_to(3, "after the undo of one of them, which came by itself and by a stream at the same time")


async def _alike(trial: Trial, found: Sequence[Answer], do: Message, what: str) -> None:
    """Each was answered as the do is now; those for which there was no room, or which were not waited for, say nothing."""
    first = await trial.server.settle(do)
    output_of(first, what)
    for answer in found:
        if not isinstance(answer, Status):
            same(first, answer, what)


@check("batch-limits")
async def limits_are_of_calls(stream: Stream) -> None:
    """That the time of a call is over decides nothing about its effect, nor about other calls."""
    hasty, patient = Trial(stream.server), Trial(stream.server)
    slow = [hasty.do_message(amount=3, sleep_ms=SLOW_MS), patient.do_message(amount=4, sleep_ms=SLOW_MS)]
    pending = await stream.write(slow, [SLOW_MS / 3000, stream.server.patience_s])
    (answer,) = await stream.answers(pending[1:])
    if is_busy(answer):
        raise NotApplicable("The server has no room for the calls of this check.")
    output_of(answer, "A do with time left, in a message with one whose time was over,")
    first = await hasty.has_effect(amount=3, sleep_ms=SLOW_MS, attempt=2)
    await hasty.adds_up_to(3, "after a do of 3 whose time was over, and that was repeated")
    (again,) = await stream.settle([hasty.do_message(amount=3, sleep_ms=SLOW_MS, attempt=3)])
    same(first, again, "A do that was repeated once more")


@check("batch-room")
async def message_of_the_largest_size(stream: Stream) -> None:
    """A message of 1,000 calls and 1 MiB is taken, and each of its calls is answered, be it that there is no room for it."""
    trial = Trial(stream.server)
    data = bytes(MAX_BYTES // (MAX_CALLS // _ECHOED_EVERY) - 1024)
    payload = common_pb2.Payload(content_type="application/octet-stream", data=data)
    calls = [
        trial.do_message(
            str(n), action=_NONE if n % _ECHOED_EVERY else ECHO, inputs={} if n % _ECHOED_EVERY else {"payload": payload}
        )
        for n in range(MAX_CALLS)
    ]
    for number, answer in enumerate(await stream.settle(calls)):
        if number % _ECHOED_EVERY:
            if not isinstance(answer, Status) or answer.code is not grpc.StatusCode.UNIMPLEMENTED:
                raise Breach(f"In a message of {MAX_CALLS} calls, one of an action that is not offered answered {answer}.")
        elif output_of(answer, f"In a message of {MAX_CALLS} calls a do").payload != payload:
            raise Breach(f"In a message of {MAX_CALLS} calls a payload came back as another.")


@check("batch-room")
async def one_large_call(stream: Stream) -> None:
    """A message is taken whose only call is larger than that."""
    large = common_pb2.Payload(content_type="application/octet-stream", data=bytes(checks.PAYLOAD_BYTES))
    inputs = {f"input {n}": large for n in range(checks.LARGE_INPUTS)}
    (answer,) = await stream.settle([Trial(stream.server).do_message(action=ECHO, inputs={"payload": large, **inputs})])
    if output_of(answer, f"A do of {len(inputs) + 1} large payloads").payload != large:
        raise Breach("A large payload came back as another.")


@check("batch-end")
async def stream_breaks_off(stream: Stream) -> None:
    """Calls in hand when the stream breaks off have their effects once when they are repeated, and can be undone."""
    await _ends(stream, stream.break_off, "breaks off")


@check("batch-end")
async def stream_is_ended(stream: Stream) -> None:
    """The same holds when the SEC node ends the stream with calls in hand."""
    await _ends(stream, stream.end, "is ended")


async def _ends(stream: Stream, end: Callable[[], Awaitable[None]], how: str) -> None:
    repeated, undone, sleep_ms = await _in_hand(stream)
    await end()
    repeated.epoch = undone.epoch = 2
    await undone.is_undone(amount=3)
    async with Stream(stream.server) as following:
        with following.blamed():
            found: list[Pending] = await following.write([repeated.do_message(amount=3, sleep_ms=sleep_ms, attempt=2)])
            (answer,) = await following.answers(found)
    if isinstance(answer, Status) and answer.code is grpc.StatusCode.UNAVAILABLE:
        raise Breach(f"On a stream that begins after another {how} a do answered {answer}.")
    await repeated.has_effect(amount=3, sleep_ms=sleep_ms, attempt=3)
    await asyncio.sleep(sleep_ms / 1000)
    await repeated.adds_up_to(3, f"after a do of 3 whose stream {how}, and that was repeated")
    await undone.adds_up_to(0, f"after a do whose stream {how}, and its undo")


async def _in_hand(stream: Stream) -> tuple[Trial, Trial, int]:
    """Two dos that the server has begun and not answered, and how long they take, in ms."""
    for sleep_ms in LONG_MS:  # on a busy machine those of the first time may be over before we look
        trials = Trial(stream.server), Trial(stream.server)
        pending = await stream.write([trial.do_message(amount=3, sleep_ms=sleep_ms) for trial in trials])
        behind = await stream.write([Trial(stream.server).do_message(action=BALANCE)])
        await stream.answers(
            behind
        )  # so the server has read the dos: what it has not read goes with the stream, and is never begun
        if not any(answer.done() for answer in pending):
            break
    return *trials, sleep_ms


def _gist(answer: Answer) -> str:
    """What tells one answer from another."""
    match answer:
        case Output():
            return str(number_in(answer, "the output"))
        case Failure(error):
            return error.message
        case Status(code):
            return code.name
        case _:
            return str(answer)
