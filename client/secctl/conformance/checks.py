"""The checks of an action server that runs: each finds out about one clause of the contract. They may run at the same time."""

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2
from sec_protos.v1 import common_pb2

from secctl.conformance.probe import (
    ADD,
    BALANCE,
    ECHO,
    Answer,
    Breach,
    Failure,
    Output,
    Server,
    Status,
    Trial,
    Undone,
    json_payload,
    number_in,
    output_of,
)

S = TypeVar("S")

PAYLOAD_BYTES = 256 * 1024
LARGE_INPUTS = 20
"""That many payloads do not fit into the 4 MiB that most gRPC libraries take by default."""
AT_ONCE = 40
SLOW_MS = 300
LONG_MS = (300, 3000)
_BETWEEN_S = 0.02
_ANSWERS_WHILE_BUSY = 4
"""Enough to know that it is not the call that is late: the first of them may be sent before it has arrived."""
_TEXT = "Grüße aus 東京 🚄 \u202e\x00\\\"' \U0001f468\u200d\U0001f469"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}")


class NotApplicable(Exception):
    """The check does not concern this server. The message says why."""


class NotOffered(Exception):
    """The check is of something optional that this server does without. The message says what."""


@dataclass(frozen=True, slots=True)
class Check(Generic[S]):
    """`run` raises `Breach` when the clause is not kept. `says` is the sentence that must be true."""

    clause: str
    says: str
    run: Callable[[S], Awaitable[None]]


CHECKS: list[Check[Server]] = []


def check(clause: str) -> Callable[[Callable[[Server], Awaitable[None]]], Callable[[Server], Awaitable[None]]]:
    """Adds a function to the checks. Its docstring is what it checks."""

    def add(function: Callable[[Server], Awaitable[None]]) -> Callable[[Server], Awaitable[None]]:
        CHECKS.append(Check(clause, function.__doc__ or "", function))
        return function

    return add


@check("describe")
async def describes(server: Server) -> None:
    """Every action that is offered is described, once, and has a valid name."""
    names = Counter(action.name for action in (await server.describe()).actions)
    for name, times in names.items():
        if times > 1:
            raise Breach(f'The action "{name}" is described {times} times.')
        if not _NAME.fullmatch(name):
            raise Breach(f'The name "{name}" of an action is not valid.')
    for name in (ADD, BALANCE, ECHO):
        if name not in names:
            raise Breach(f'The action "{name}" is not described. A server that is to be checked has to offer it.')


@check("describe")
async def describes_while_busy(server: Server) -> None:
    """Describe is answered while a call is in hand."""
    await _while_busy(server, lambda: server.describe(), "Describe")


@check("health")
async def healthy(server: Server) -> None:
    """The health service says that the actions are served."""
    status = await _health(server)
    if status != health_pb2.HealthCheckResponse.SERVING:
        raise Breach(f'The health of "sec.v1.ActionServer" is {status}, and not SERVING.')


@check("health")
async def healthy_while_busy(server: Server) -> None:
    """The health service answers while a call is in hand."""
    await _health(server)
    await _while_busy(server, lambda: server.health(), "The health service")


async def _health(server: Server) -> int:
    try:
        return await server.health()
    except grpc.aio.AioRpcError as e:
        if e.code() is grpc.StatusCode.UNIMPLEMENTED:
            raise NotApplicable("The server has no health service.") from None
        raise Breach(f"The health service answered the status {e.code().name} ({e.details()}).") from None


async def _while_busy(server: Server, ask: Callable[[], Awaitable[object]], what: str) -> None:
    for sleep_ms in LONG_MS:  # what is only slow has another try
        slow = asyncio.ensure_future(Trial(server).do(amount=1, sleep_ms=sleep_ms))
        answers = 0
        while not slow.done() and answers < _ANSWERS_WHILE_BUSY:
            await ask()
            answers += 1
            await asyncio.sleep(_BETWEEN_S)
        if not slow.done():
            slow.cancel()
            return
    raise Breach(f"{what} is not answered while a call of {sleep_ms} ms is in hand: {answers} times only.")


@check("one-answer")
async def one_answer(server: Server) -> None:
    """A do that worked answers its output, and its effect is there."""
    trial = Trial(server)
    first = await trial.has_effect("a", amount=3)
    if (found := number_in(first, f'the output of "{ADD}"')) != 3:
        raise Breach(f'The first do of "{ADD}" with the amount 3 answered {found}; it must answer the balance, 3.')
    await trial.has_effect("b", amount=4)
    await trial.adds_up_to(7, "after a do of 3 and a do of 4")


@check("one-answer")
async def undo_takes_back(server: Server) -> None:
    """An undo takes the effect of its do away, and no other."""
    trial = Trial(server)
    first = await trial.has_effect("a", amount=3)
    await trial.has_effect("b", amount=4)
    await trial.is_undone("a", amount=3, output=first.payload)
    await trial.adds_up_to(4, "after dos of 3 and 4 and the undo of the first")


@check("idempotent-do")
async def repeated_do(server: Server) -> None:
    """A do that is seen again answers what it answered before, and has no further effect."""
    trial = Trial(server)
    first = await trial.has_effect(amount=3)
    await trial.has_effect("b", amount=10)
    same(first, await trial.do(amount=3), "A repeated do")
    await trial.adds_up_to(13, "after a do of 3, which was repeated, and a do of 10")


@check("idempotent-do")
async def repeated_by_another_owner(server: Server) -> None:
    """A do that another SEC node repeats, in a higher epoch, answers what it answered before."""
    trial = Trial(server)
    first = await trial.has_effect(amount=3)
    trial.epoch = 7
    same(first, await trial.do(amount=3, attempt=2), "A do that was repeated in a higher epoch")
    await trial.adds_up_to(3, "after a do of 3 that was repeated in a higher epoch")


@check("idempotent-undo")
async def repeated_undo(server: Server) -> None:
    """An undo that is seen again succeeds again, and changes nothing."""
    trial = Trial(server)
    first = await trial.has_effect(amount=3)
    for attempt in (1, 2, 3):
        await trial.is_undone(amount=3, output=first.payload, attempt=attempt)
    await trial.adds_up_to(0, "after a do of 3 whose undo came three times")


@check("keys")
async def keys_are_opaque(server: Server) -> None:
    """Keys that differ in one character, in case, or behind the 500th byte are different effects."""
    trial = Trial(server)
    room = 512 - len(trial.uid) - 1
    keys = ["k", "K", "k ", "k%", "k_", "k'--", '"k"', "k/../k", "\\k", "x" * (room - 1) + "1", "x" * (room - 1) + "2"]
    for key in keys:
        await trial.has_effect(key, amount=1)
    await trial.adds_up_to(len(keys), f"after {len(keys)} dos of 1, each with a key of its own")
    await trial.is_undone("k%", amount=1)
    await trial.adds_up_to(len(keys) - 1, 'after the undo of the one whose key ends with "k%"')


@check("undo-first")
async def undo_before_do(server: Server) -> None:
    """An undo whose do was never seen succeeds, and makes a later do a failure."""
    trial = Trial(server)
    await trial.is_undone(amount=3)
    failed(await trial.do(amount=3), "A do that came after its undo, which came first,")
    await trial.adds_up_to(0, "after an undo and then its do")
    await trial.is_undone(amount=3)


@check("late-do")
async def do_after_undo(server: Server) -> None:
    """A do that is repeated after its undo answers a failure, and has no effect."""
    trial = Trial(server)
    first = await trial.has_effect(amount=3)
    await trial.is_undone(amount=3, output=first.payload)
    failed(await trial.do(amount=3), "A do that came again after its undo")
    await trial.adds_up_to(0, "after a do, its undo, and the do again")


@check("late-do")
async def undo_overtakes_a_cancelled_do(server: Server) -> None:
    """A do whose caller went away leaves nothing behind once its undo has been answered."""
    trial = Trial(server)
    await trial.server.send(trial.do_message(amount=3, sleep_ms=SLOW_MS), timeout_s=SLOW_MS / 3000)
    trial.epoch = 2
    await trial.is_undone(amount=3, sleep_ms=SLOW_MS)
    await trial.adds_up_to(0, "after a do whose caller went away, and its undo")
    await asyncio.sleep(SLOW_MS / 1000)
    await trial.adds_up_to(0, "some time after the undo of a do whose caller went away")
    failed(await trial.do(amount=3), "A do that came again after its undo")


@check("undo-with-output")
async def undo_with_output(server: Server) -> None:
    """An undo that brings an output is carried out although its do was never seen here."""
    trial = Trial(server)
    await trial.is_undone(amount=3, output=json_payload(3))
    await trial.adds_up_to(-3, "after an undo of 3 that brought the output of a do which this server never saw")
    await trial.is_undone(amount=3, output=json_payload(3))
    await trial.adds_up_to(-3, "after the same undo again")
    failed(await trial.do(amount=3), "A do that came after such an undo")


@check("stale-epoch")
async def stale_do(server: Server) -> None:
    """A do in a lower epoch than one seen before is refused, and has no effect."""
    trial = Trial(server, epoch=5)
    await trial.has_effect("a", amount=3)
    stale(await trial.do("b", amount=4, epoch=4), "A do in epoch 4, after one in epoch 5,")
    await trial.adds_up_to(3, "after a do of 3 in epoch 5 and a do of 4 in epoch 4")


@check("stale-epoch")
async def stale_repeated_do(server: Server) -> None:
    """A do in a lower epoch is refused although its key is known."""
    trial = Trial(server, epoch=5)
    await trial.has_effect(amount=3, epoch=4)
    await trial.balance()
    stale(await trial.do(amount=3, epoch=4), "A do that was repeated in epoch 4, after a call in epoch 5,")


@check("stale-epoch")
async def stale_undo(server: Server) -> None:
    """An undo in a lower epoch is refused, and undoes nothing."""
    trial = Trial(server, epoch=5)
    first = await trial.has_effect(amount=3)
    stale(await trial.undo(amount=3, output=first.payload, epoch=4), "An undo in epoch 4, after a do in epoch 5,")
    await trial.adds_up_to(3, "after a do of 3 in epoch 5 and its undo in epoch 4")


@check("new-epoch")
async def epoch_of_a_repeated_do(server: Server) -> None:
    """The epoch of a do that only repeats an answer is remembered."""
    trial = Trial(server)
    await trial.has_effect("a", amount=3)
    await trial.do("a", amount=3, epoch=9)
    stale(await trial.do("b", amount=4, epoch=8), "A do in epoch 8, after a repeated one in epoch 9,")


@check("new-epoch")
async def epoch_of_a_failed_do(server: Server) -> None:
    """The epoch of a do that fails is remembered."""
    trial = Trial(server)
    await trial.do("a", amount=3, fail=1, epoch=9)
    stale(await trial.do("b", amount=4, epoch=8), "A do in epoch 8, after one in epoch 9 that failed,")


@check("new-epoch")
async def epoch_of_an_unknown_outcome(server: Server) -> None:
    """The epoch of a do whose outcome is unknown is remembered."""
    trial = Trial(server)
    await server.send(trial.do_message("a", amount=3, unavailable=1, epoch=9))
    stale(await trial.do("b", amount=4, epoch=8), "A do in epoch 8, after one in epoch 9 whose outcome is unknown,")


@check("new-epoch")
async def epoch_of_an_undo(server: Server) -> None:
    """The epoch of an undo that finds nothing to undo is remembered."""
    trial = Trial(server)
    await trial.is_undone("a", amount=3, epoch=9)
    stale(await trial.do("b", amount=4, epoch=8), "A do in epoch 8, after an undo in epoch 9,")


@check("new-epoch")
async def large_epochs(server: Server) -> None:
    """Epochs are whole numbers of 64 bits, and are compared as such."""
    trial = Trial(server, epoch=2**53 + 1)
    await trial.has_effect("a", amount=3)
    stale(await trial.do("b", amount=4, epoch=2**53), "A do in epoch 2^53, after one in epoch 2^53 + 1,")
    trial.epoch = 2**63 - 1
    await trial.has_effect("c", amount=5)
    stale(await trial.do("d", amount=4, epoch=2**63 - 2), "A do in epoch 2^63 - 2, after one in epoch 2^63 - 1,")
    await trial.adds_up_to(8, "after dos of 3 and 5 in the highest epochs")


@check("epoch-per-saga")
async def epochs_of_two_sagas(server: Server) -> None:
    """The epoch of one saga says nothing about another."""
    await Trial(server, epoch=9).has_effect(amount=3)
    other = Trial(server, epoch=1)
    answer = await other.do(amount=4)
    if not isinstance(answer, Output):
        raise Breach(f"A do in epoch 1 of one saga, after a do in epoch 9 of another, answered {answer}, and not an output.")


@check("cancelled")
async def cancelled_do(server: Server) -> None:
    """A do that its saga does not want any more answers an output and has its effect, or a failure and has none."""
    trial = Trial(server)
    message = trial.do_message(amount=3)
    message.call.cancelled = True
    answer = await server.settle(message)
    match answer:
        case Output():
            await trial.adds_up_to(3, "after a do of 3 that was cancelled and answered an output")
        case Failure():
            await trial.adds_up_to(0, "after a do of 3 that was cancelled and answered a failure")
            failed(await trial.do(amount=3), "A do that came again after it was cancelled and had failed")
        case _:
            raise Breach(f"A do that was cancelled answered {answer}, and neither an output nor a failure.")
    await trial.is_undone(amount=3)
    await trial.adds_up_to(0, "after a do of 3 that was cancelled, and its undo")


@check("failure")
async def failure_is_final(server: Server) -> None:
    """A failure leaves no effect, and is answered again to a repeated do."""
    trial = Trial(server)
    first = await trial.do(amount=3, fail=1, message="There is none left.")
    if not isinstance(first, Failure):
        raise Breach(f"A do that was told to fail answered {first}, and not a failure.")
    if (first.error.code, first.error.message) != ("refused", "There is none left."):
        raise Breach(f'The failure is "{first.error.message}" [{first.error.code}]; it must be "There is none left." [refused].')
    same(
        first,
        await trial.do(amount=3, fail=1, message="There is none left.", attempt=2),
        "A do that was repeated after its failure",
    )
    await trial.adds_up_to(0, "after a do that failed, and was repeated")


@check("failure")
async def failure_in_unicode(server: Server) -> None:
    """The message of a failure may be any Unicode text."""
    message = _TEXT.replace("\x00", "")
    answer = await Trial(server).do(amount=1, fail=1, message=message)
    if not isinstance(answer, Failure) or answer.error.message != message:
        raise Breach(f"A do that was told to fail with the message {message!r} answered {answer}.")


@check("undo-failure")
async def failed_undo_is_carried_out_anew(server: Server) -> None:
    """An undo that failed leaves the effect, and is carried out anew when it comes again."""
    trial = Trial(server)
    first = await trial.has_effect(amount=3)
    answer = await trial.undo(amount=3, undo_fail=1, output=first.payload)
    if not isinstance(answer, Failure):
        raise Breach(f"An undo that was told to fail answered {answer}, and not a failure.")
    await trial.adds_up_to(3, "after a do of 3 whose undo failed")
    await trial.is_undone(amount=3, undo_fail=1, output=first.payload, attempt=2)
    await trial.adds_up_to(0, "after a do of 3 whose undo failed and then succeeded")


@check("in-doubt")
async def do_after_a_failed_undo(server: Server) -> None:
    """A do that comes after its undo has failed is answered UNAVAILABLE."""
    trial = Trial(server)
    first = await trial.has_effect(amount=3)
    await trial.undo(amount=3, undo_fail=1, output=first.payload)
    answer = await server.send(trial.do_message(amount=3))
    if not isinstance(answer, Status) or answer.code is not grpc.StatusCode.UNAVAILABLE:
        raise Breach(f"A do that came after its undo had failed answered {answer}, and not the status UNAVAILABLE.")
    await trial.adds_up_to(3, "after a do of 3, its undo that failed, and the do again")


@check("not-offered")
async def unknown_action(server: Server) -> None:
    """An action that is not offered is answered UNIMPLEMENTED, also when it is to be undone."""
    trial = Trial(server)
    for what, answer in (
        ("do", await server.send(trial.do_message(action="conformance.none"))),
        ("undo", await server.send(trial.undo_message(action="conformance.none"))),
    ):
        if not isinstance(answer, Status) or answer.code is not grpc.StatusCode.UNIMPLEMENTED:
            raise Breach(f"A {what} of an action that is not offered answered {answer}, and not the status UNIMPLEMENTED.")


@check("unknown-outcome")
async def unavailable_then_done(server: Server) -> None:
    """A do whose outcome was unknown is carried out when it comes again."""
    trial = Trial(server)
    unknown(await server.send(trial.do_message(amount=3, unavailable=1)), "A do that was told to be unavailable")
    await trial.has_effect(amount=3, unavailable=1, attempt=2)
    await trial.adds_up_to(3, "after a do of 3 whose outcome was unknown at first")


@check("unknown-outcome")
async def unavailable_then_undone(server: Server) -> None:
    """A do whose outcome is unknown can be undone, without an output, and then fails."""
    trial = Trial(server)
    unknown(await server.send(trial.do_message(amount=3, unavailable=1)), "A do that was told to be unavailable")
    await trial.is_undone(amount=3)
    await trial.adds_up_to(0, "after a do whose outcome was unknown, and its undo")
    failed(await trial.do(amount=3, attempt=2), "A do that came again after its undo")
    await trial.adds_up_to(0, "after a do whose outcome was unknown, its undo, and the do again")


@check("unknown-outcome")
async def undone_without_output(server: Server) -> None:
    """A do that took effect is undone by an undo that brings no output."""
    trial = Trial(server)
    await trial.has_effect(amount=3)
    await trial.is_undone(amount=3)
    await trial.adds_up_to(0, "after a do of 3 and an undo without its output")


@check("unknown-outcome")
async def unavailable_undo(server: Server) -> None:
    """An undo whose outcome was unknown is carried out when it comes again."""
    trial = Trial(server)
    first = await trial.has_effect(amount=3)
    message = trial.undo_message(amount=3, undo_unavailable=1, output=first.payload)
    unknown(await server.send(message), "An undo that was told to be unavailable")
    await trial.is_undone(amount=3, undo_unavailable=1, output=first.payload, attempt=2)
    await trial.adds_up_to(0, "after a do of 3 whose undo was unavailable at first")


@check("deadline")
async def deadline_then_done(server: Server) -> None:
    """A do whose deadline passed has its effect once when it is repeated."""
    trial = Trial(server)
    await server.send(trial.do_message(amount=3, sleep_ms=SLOW_MS), timeout_s=SLOW_MS / 3000)
    answer = await trial.has_effect(amount=3, sleep_ms=SLOW_MS, attempt=2)
    await asyncio.sleep(SLOW_MS / 1000)
    await trial.adds_up_to(3, "after a do of 3 whose deadline had passed, and that was repeated")
    same(answer, await trial.do(amount=3, sleep_ms=SLOW_MS, attempt=3), "A do that was repeated once more")


@check("deadline")
async def cancelled_then_done(server: Server) -> None:
    """A do whose caller went away has its effect once when it is repeated."""
    trial = Trial(server)
    gone = asyncio.ensure_future(server.send(trial.do_message(amount=3, sleep_ms=SLOW_MS)))
    await server.caught_up()
    gone.cancel()
    await trial.has_effect(amount=3, sleep_ms=SLOW_MS, attempt=2)
    await asyncio.sleep(SLOW_MS / 1000)
    await trial.adds_up_to(3, "after a do of 3 that was cancelled, and repeated")


@check("payloads")
async def payloads_of_all_kinds(server: Server) -> None:
    """Payloads come through as they are: any bytes, any text, empty ones."""
    trial = Trial(server)
    samples = [
        common_pb2.Payload(content_type="application/octet-stream", data=bytes(range(256))),
        common_pb2.Payload(content_type="application/json", data=b' {"b": 1, "a": 1.0, "a": 1e400} '),
        common_pb2.Payload(content_type="text/plain; charset=utf-8", data=_TEXT.encode()),
        common_pb2.Payload(content_type="image/png", data=b""),
    ]
    for number, sample in enumerate(samples):
        await _echoed(trial, f"echo {number}", sample)


@check("payloads")
async def unicode_inputs(server: Server) -> None:
    """The names of inputs, and JSON values, may have any Unicode text."""
    inputs = {_TEXT.replace("\x00", ""): json_payload(_TEXT)}
    await _echoed(Trial(server), "echo", json_payload({"text": _TEXT}), **inputs)


@check("payloads")
async def payload_of_the_largest_size(server: Server) -> None:
    """A payload of 256 KiB is taken, and answered."""
    data = bytes(range(256)) * (PAYLOAD_BYTES // 256)
    await _echoed(Trial(server), "echo", common_pb2.Payload(content_type="application/octet-stream", data=data))


@check("large-calls")
async def many_large_inputs(server: Server) -> None:
    """A call that reads many large payloads is taken."""
    large = common_pb2.Payload(content_type="application/octet-stream", data=bytes(PAYLOAD_BYTES))
    await _echoed(Trial(server), "echo", json_payload("here"), **{f"input {n}": large for n in range(LARGE_INPUTS)})


async def _echoed(trial: Trial, key: str, payload: common_pb2.Payload, **others: common_pb2.Payload) -> None:
    answer = await trial.do(key, action=ECHO, inputs={"payload": payload, **others})
    found = output_of(answer, f'A do of "{ECHO}" with {len(payload.data)} bytes of "{payload.content_type}"').payload
    if found != payload:
        raise Breach(
            f'A payload of {len(payload.data)} bytes of "{payload.content_type}" came back as '
            f'{len(found.data)} bytes of "{found.content_type}"{"" if found.data == payload.data else ", which are others"}.'
        )


@check("concurrency")
async def one_key_at_once(server: Server) -> None:
    """A do that arrives several times at once has its effect once, and is answered alike."""
    trial = Trial(server)
    first, *others = await asyncio.gather(*(trial.do(amount=3, sleep_ms=20) for _ in range(8)))
    output_of(first, "A do that arrived 8 times at once")
    for other in others:
        same(first, other, "A do that arrived 8 times at once")
    await trial.adds_up_to(3, "after a do of 3 that arrived 8 times at once")


@check("concurrency")
async def many_keys_at_once(server: Server) -> None:
    """Dos of many keys and sagas at once all have their effects."""
    sagas = [Trial(server) for _ in range(4)]
    dos = [(saga, str(number)) for number in range(AT_ONCE // len(sagas)) for saga in sagas]
    for answer in await asyncio.gather(*(saga.do(key, amount=1) for saga, key in dos)):
        output_of(answer, f"One of {AT_ONCE} dos at once")
    for saga in sagas:
        await saga.adds_up_to(AT_ONCE // len(sagas), f"after {AT_ONCE // len(sagas)} dos of 1 at once")


@check("concurrency")
async def do_and_undo_at_once(server: Server) -> None:
    """A do and its undo that arrive at once leave nothing."""
    trial = Trial(server)
    keys = [str(number) for number in range(8)]
    await asyncio.gather(*(call for key in keys for call in (trial.do(key, amount=1), trial.is_undone(key, amount=1))))
    await trial.adds_up_to(0, "after 8 dos that arrived at the same time as their undos")
    for key in keys:
        failed(await trial.do(key, amount=1), "A do that came again after its undo")


def same(first: Answer, again: Answer, what: str) -> None:
    """Raises `Breach` unless both are the same output or failure."""
    if not isinstance(again, Output | Failure) or not isinstance(first, Output | Failure) or first.raw != again.raw:
        raise Breach(f"{what} answered {again}; the first time it answered {first}.")


def failed(answer: Answer, what: str) -> None:
    """Raises `Breach` unless it is a failure."""
    if not isinstance(answer, Failure):
        raise Breach(f"{what} answered {answer}, and not a failure.")


def stale(answer: Answer, what: str) -> None:
    """Raises `Breach` unless the epoch was refused."""
    if not isinstance(answer, Status) or answer.code is not grpc.StatusCode.FAILED_PRECONDITION:
        raise Breach(f"{what} answered {answer}, and not the status FAILED_PRECONDITION.")


def unknown(answer: Answer, what: str) -> None:
    """Raises `Breach` unless it says that the outcome is unknown."""
    if isinstance(answer, Output | Failure | Undone) or not isinstance(answer, Status):
        raise Breach(f"{what} answered {answer}, and not an error status.")
    if answer.code in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNIMPLEMENTED):
        raise Breach(f"{what} answered {answer}, which means that there was no effect and never will be here.")
