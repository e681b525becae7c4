"""What a client hears when something is wrong: a status, a sentence that names the saga and the node, a hint; and nothing half-written."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import status_pb2
from grpc_status.rpc_status import GRPC_DETAILS_METADATA_KEY
from inprocess_support import Cluster, World, chain, cluster
from sec_client import SagaState
from sec_client.aio import Client
from sec_client.kit import ActionServer, Call, MemoryStore
from sec_model.codec import definition_to_proto
from sec_protos.v1 import commands_pb2 as cp
from sec_protos.v1 import common_pb2, coordinator_pb2_grpc
from sec_protos.v1 import coordinator_pb2 as pb
from sec_protos.v1 import definition_pb2 as dp
from waiting_support import until

from sec.store.kv import Get, prefix_end

Code = grpc.StatusCode


@dataclass(frozen=True)
class Refusal:
    """A refused call, as it comes over the wire."""

    status: grpc.StatusCode
    message: str
    detail: common_pb2.ErrorDetail


@dataclass
class Desk:
    """One SEC node, and its service without any client library in between."""

    cluster: Cluster
    world: World
    stub: Any
    client: Client

    async def refusal(self, method: str, message: Any) -> Refusal:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await getattr(self.stub, method)(message, timeout=10)
        return _refusal(raised.value)

    def written(self) -> int:
        """How many keys there are of sagas and definitions."""
        member = self.cluster.members["n1"]
        prefix = member.node.keys.saga("").removesuffix(b"saga/")  # type: ignore[arg-type]
        return self.cluster.etcd.get(Get(prefix, prefix_end(prefix))).count


def _refusal(error: grpc.aio.AioRpcError) -> Refusal:
    trailing = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailing[GRPC_DETAILS_METADATA_KEY])  # type: ignore[arg-type]
    detail = common_pb2.ErrorDetail()
    assert status.details[0].Unpack(detail)
    assert detail.sec_node == "n1", "the node that answers names itself"
    return Refusal(error.code(), error.details() or "", detail)


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    world = World()
    async with cluster("n1") as c, c.client() as client, grpc.aio.insecure_channel(c.members["n1"].address) as channel:
        await c.serve(world.server())
        yield Desk(c, world, coordinator_pb2_grpc.CoordinatorStub(channel), client)


CHAIN = definition_to_proto(chain("a", "b"))


def saga(*nodes: dp.NodeDefinition, name: str = "s") -> dp.SagaDefinition:
    return dp.SagaDefinition(name=name, nodes=nodes)


def step(name: str, *after: str, reads: tuple[str, ...] = ()) -> dp.NodeDefinition:
    inputs = [dp.NodeInput(node=r) for r in reads]
    return dp.NodeDefinition(name=name, depends_on=after, inputs=inputs, action=dp.ActionNode(action="step"))


def waits(name: str, **deadline: Any) -> dp.NodeDefinition:
    """A signal node with a deadline."""
    return dp.NodeDefinition(name=name, signal=dp.SignalNode(deadline=dp.Deadline(**deadline)))


BAD_SUBMITS: dict[str, tuple[pb.SubmitSagaRequest, str, str]] = {
    "no definition": (pb.SubmitSagaRequest(saga_id="s1"), "invalid_definition", 'The saga "" has no nodes.'),
    "saga id": (pb.SubmitSagaRequest(saga_id="a/b", definition=CHAIN), "invalid_argument", 'The saga id "a/b" is not valid'),
    "cycle": (
        pb.SubmitSagaRequest(saga_id="s1", definition=saga(step("a", "b"), step("b", "a"))),
        "invalid_definition",
        'The nodes "a", "b" of saga "s" depend on each other in a circle.',
    ),
    "unknown edge": (
        pb.SubmitSagaRequest(saga_id="s1", definition=saga(step("a", "x"))),
        "invalid_definition",
        'Node "a" depends on "x", which is not a node of saga "s".',
    ),
    "not an ancestor": (
        pb.SubmitSagaRequest(
            saga_id="s1", definition=saga(step("a"), step("b"), step("c", "a", "b"), step("d", "c", reads=("e",)))
        ),
        "invalid_definition",
        'Node "d" reads the output of "e", which is not a node of saga "s".',
    ),
    "two ends": (
        pb.SubmitSagaRequest(saga_id="s1", definition=saga(step("a"), step("b"))),
        "invalid_definition",
        'must end in one final node, but nothing depends on any of "a", "b"',
    ),
    "node of no kind": (
        pb.SubmitSagaRequest(saga_id="s1", definition=saga(dp.NodeDefinition(name="a"))),
        "invalid_definition",
        'Node "a" is of no kind that this version knows: action, constant, signal, timer, subsaga.',
    ),
    "unknown undo policy": (
        pb.SubmitSagaRequest(
            saga_id="s1", definition=saga(dp.NodeDefinition(name="a", action=dp.ActionNode(action="step", undo=77)))
        ),  # type: ignore[arg-type]
        "invalid_definition",
        'Node "a" has the unknown undo policy 77.',
    ),
    "deadline of a node": (
        pb.SubmitSagaRequest(saga_id="s1", definition=saga(waits("a", after_s=float("nan")))),
        "invalid_definition",
        'The deadline of node "a" is nan seconds; it must be above 0 and at most 3153600000.',
    ),
    "unknown consequence of a node's deadline": (
        pb.SubmitSagaRequest(saga_id="s1", definition=saga(waits("a", after_s=1, then=9))),
        "invalid_definition",
        'Node "a": A deadline has the unknown consequence 9.',
    ),
    "timer of nothing": (
        pb.SubmitSagaRequest(saga_id="s1", definition=saga(dp.NodeDefinition(name="a", timer=dp.TimerNode()))),
        "invalid_definition",
        'The timer "a" has nothing to wait for',
    ),
    "endless timer": (
        pb.SubmitSagaRequest(saga_id="s1", definition=saga(dp.NodeDefinition(name="a", timer=dp.TimerNode(after_s=float("inf"))))),
        "invalid_definition",
        'The timer "a" waits inf seconds; it must be above 0',
    ),
    "timer before 1970": (
        pb.SubmitSagaRequest(saga_id="s1", definition=saga(dp.NodeDefinition(name="a", timer=dp.TimerNode(until_us=-1)))),
        "invalid_definition",
        'The timer "a" waits until -1 microseconds since 1970',
    ),
    "unknown consequence of the saga's deadline": (
        pb.SubmitSagaRequest(saga_id="s1", definition=CHAIN, deadline=dp.Deadline(after_s=1, then=9)),  # type: ignore[arg-type]
        "invalid_argument",
        'Saga "s1": A deadline has the unknown consequence 9.',
    ),
    **{
        f"deadline of the saga: {seconds}": (
            pb.SubmitSagaRequest(saga_id="s1", definition=CHAIN, deadline=dp.Deadline(after_s=seconds)),
            "invalid_argument",
            f'The deadline of saga "s1" is {seconds} seconds; it must be above 0 and at most 3153600000.',
        )
        for seconds in (0.0, -1.0, 4e9, float("inf"), float("nan"))
    },
    "large params": (
        pb.SubmitSagaRequest(saga_id="s1", definition=CHAIN, params=common_pb2.Payload(data=b"x" * 300_000)),
        "payload_too_large",
        'The params of saga "s1" would take 300000 bytes; at most 262144 are allowed.',
    ),
    "large constant": (
        pb.SubmitSagaRequest(
            saga_id="s1",
            definition=saga(
                dp.NodeDefinition(name="k", constant=dp.ConstantNode(value=common_pb2.Payload(data=b"x" * 300_000))), step("z", "k")
            ),
        ),
        "payload_too_large",
        'The constant "k" of saga "s1" would take 300000 bytes; at most 262144 are allowed.',
    ),
    "large definition": (
        pb.SubmitSagaRequest(saga_id="s1", definition=saga(*(step(f"n{i}" + "x" * 100, *[]) for i in range(9_900)))),
        "definition_too_large",
        'The definition of saga "s1" has',
    ),
    "many labels": (
        pb.SubmitSagaRequest(saga_id="s1", definition=CHAIN, labels={f"l{i}": "" for i in range(33)}),
        "invalid_argument",
        'Saga "s1" has 33 labels; at most 32 are allowed.',
    ),
    "long label": (
        pb.SubmitSagaRequest(saga_id="s1", definition=CHAIN, labels={"team": "x" * 257}),
        "invalid_argument",
        'The label "team" of saga "s1" has 257 characters; at most 256 are allowed.',
    ),
}


@pytest.mark.parametrize("case", BAD_SUBMITS)
async def test_a_bad_submit_is_refused_and_leaves_nothing_behind(desk: Desk, case: str) -> None:
    message, code, sentence = BAD_SUBMITS[case]
    refusal = await desk.refusal("SubmitSaga", message)
    assert refusal.status is Code.INVALID_ARGUMENT
    assert refusal.detail.code == code
    assert sentence in refusal.message
    assert refusal.detail.definite
    assert not refusal.detail.retryable
    assert desk.written() == 0


async def test_all_problems_of_a_definition_are_told_at_once(desk: Desk) -> None:
    definition = saga(step("a", "x"), step("a"), step("bad name"))
    refusal = await desk.refusal("SubmitSaga", pb.SubmitSagaRequest(saga_id="s1", definition=definition))
    assert len(refusal.detail.problems) == 3
    assert refusal.detail.hint == "Mend the definition; nothing was stored."


async def test_an_action_that_nobody_offers_is_refused_when_that_is_wished(desk: Desk) -> None:
    definition = saga(dp.NodeDefinition(name="a", action=dp.ActionNode(action="nobodys")))
    refusal = await desk.refusal("SubmitSaga", pb.SubmitSagaRequest(saga_id="s1", definition=definition, require_actions=True))
    assert (refusal.status, refusal.detail.code) == (Code.FAILED_PRECONDITION, "action_not_offered")
    assert refusal.message == 'Saga "s1" was not stored: no action server that can be reached offers "nobodys".'
    assert desk.written() == 0


async def test_a_saga_that_was_stored_before_is_not_refused_for_its_actions(desk: Desk) -> None:
    """A repeated submit must not fail because an action server has gone meanwhile."""
    definition = saga(dp.NodeDefinition(name="a", action=dp.ActionNode(action="nobodys")))
    first = await desk.stub.SubmitSaga(pb.SubmitSagaRequest(saga_id="s1", definition=definition))
    again = await desk.stub.SubmitSaga(pb.SubmitSagaRequest(saga_id="s1", definition=definition, require_actions=True))
    assert (first.created, again.created) == (True, False)


def deadline_of(node: str = "", **set_deadline: Any) -> cp.Command:
    return cp.Command(set_deadline=cp.SetDeadline(node=node, **set_deadline))


def signal_to(node: str, data: bytes = b"", content_type: str = "") -> cp.Command:
    return cp.Command(signal=cp.Signal(node=node, data=common_pb2.Payload(data=data, content_type=content_type)))


ONE_OF_THEM = "give one of them and not both."
IN_RANGE = "give not below 0, and at most 3153600000 seconds from now."
BAD_COMMANDS: dict[str, tuple[cp.Command, str]] = {
    "both": (
        deadline_of(after_s=1.5, due_us=7),
        f"sets a deadline after 1.5 seconds or at 7 microseconds since 1970: {ONE_OF_THEM}",
    ),
    "negative": (deadline_of("a", after_s=-1), f"sets a deadline after -1.0 seconds or at 0 microseconds since 1970: {IN_RANGE}"),
    "NaN": (deadline_of(after_s=float("nan")), f"sets a deadline after nan seconds or at 0 microseconds since 1970: {IN_RANGE}"),
    "infinite": (
        deadline_of(after_s=float("inf")),
        f"sets a deadline after inf seconds or at 0 microseconds since 1970: {IN_RANGE}",
    ),
    "too far": (deadline_of(after_s=4e9), IN_RANGE),
    "before 1970": (deadline_of(due_us=-1), IN_RANGE),
    "beyond every calendar": (deadline_of(due_us=2**62), IN_RANGE),
    "unknown consequence": (deadline_of(after_s=1, then=9), "is not complete. A deadline has the unknown consequence 9."),
    "oversize signal": (signal_to("w", b"x" * 16_384), "bytes; at most 16384 are allowed."),
    "content type": (signal_to("w", b"x", "y" * 129), "with a content type of 129 characters; at most 128 are allowed."),
    "nothing": (cp.Command(), "is not complete. A command is of a kind that this version does not know."),
}


@pytest.mark.parametrize("case", BAD_COMMANDS)
async def test_a_bad_command_is_refused_and_leaves_nothing_behind(desk: Desk, case: str) -> None:
    command, sentence = BAD_COMMANDS[case]
    definition = saga(dp.NodeDefinition(name="w", signal=dp.SignalNode()), step("a", "w"))
    await desk.stub.SubmitSaga(pb.SubmitSagaRequest(saga_id="s1", definition=definition))
    before = desk.written()
    refusal = await desk.refusal("CommandSaga", pb.CommandSagaRequest(saga_id="s1", command_id="c1", command=command))
    assert (refusal.status, refusal.detail.saga_id) == (Code.INVALID_ARGUMENT, "s1")
    assert refusal.message.startswith('Command "c1" for saga "s1" ')
    assert sentence in refusal.message
    assert refusal.detail.definite
    assert not refusal.detail.retryable
    assert desk.written() == before
    state = desk.cluster.members["n1"].node.owner.drivers["s1"].state  # type: ignore[index]
    assert (state.dues, state.signals) == ({}, {})


NONSENSE: dict[str, tuple[cp.Command, str]] = {
    "signal to no signal": (signal_to("a"), 'Node "a" of saga "s1" does not wait for a signal.'),
    "signal to nobody": (signal_to("x"), 'Saga "s1" has no node "x".'),
    "deadline of nobody": (deadline_of("x", after_s=1), 'Saga "s1" has no node "x".'),
    "deadline of a timer": (deadline_of("t", after_s=1), 'Node "t" of saga "s1" is a timer, which ends by itself.'),
}


@pytest.mark.parametrize("case", NONSENSE)
async def test_a_command_that_makes_no_sense_is_refused_before_and_after_the_start(desk: Desk, case: str) -> None:
    command, sentence = NONSENSE[case]
    timer = dp.NodeDefinition(name="t", depends_on=["w"], timer=dp.TimerNode(after_s=60))
    definition = saga(dp.NodeDefinition(name="w", signal=dp.SignalNode()), timer, step("a", "t"))
    await desk.stub.SubmitSaga(pb.SubmitSagaRequest(saga_id="s1", definition=definition, start_later=True))
    message = pb.CommandSagaRequest(saga_id="s1", command_id="c1", command=command)
    before = await desk.refusal("CommandSaga", message)
    await desk.stub.StartSaga(pb.StartSagaRequest(saga_id="s1"))
    after = await desk.refusal("CommandSaga", message)
    for refusal in (before, after):
        assert (refusal.status, refusal.detail.code) == (Code.FAILED_PRECONDITION, "wrong_state")
        assert refusal.message == sentence


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (pb.CommandSagaRequest(saga_id="s1", command_id="a/b"), 'The command id "a/b" for saga "s1" is not valid'),
        (
            pb.CommandSagaRequest(saga_id="s1", command_id="c1", by="x" * 129),
            'Command "c1" for saga "s1" is given by 129 characters; at most 128 are allowed.',
        ),
    ],
)
async def test_who_gives_a_command_and_its_id_are_bounded(desk: Desk, message: Any, sentence: str) -> None:
    refusal = await desk.refusal("CommandSaga", message)
    assert refusal.status is Code.INVALID_ARGUMENT
    assert sentence in refusal.message


UNKNOWN = {
    "CommandSaga": pb.CommandSagaRequest(saga_id="nope", command_id="c1", command=cp.Command(pause=cp.Pause())),
    "GetSaga": pb.GetSagaRequest(saga_id="nope"),
    "StartSaga": pb.StartSagaRequest(saga_id="nope"),
    "WaitSaga": pb.WaitSagaRequest(saga_id="nope"),
    "GetSagaLog": pb.GetSagaLogRequest(saga_id="nope"),
}


@pytest.mark.parametrize("method", UNKNOWN)
async def test_an_unknown_saga_is_not_found(desk: Desk, method: str) -> None:
    refusal = await desk.refusal(method, UNKNOWN[method])
    assert (refusal.status, refusal.detail.code, refusal.detail.saga_id) == (Code.NOT_FOUND, "saga_not_found", "nope")
    assert refusal.message == 'There is no saga "nope". See "secctl saga list".'


async def test_watching_an_unknown_saga_is_not_found_too(desk: Desk) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async for _ in desk.stub.WatchSaga(pb.WatchSagaRequest(saga_id="nope"), timeout=10):
            pass
    assert _refusal(raised.value).status is Code.NOT_FOUND


async def test_starting_twice_or_after_the_end_is_refused(desk: Desk) -> None:
    desk.world.do["a"] = ["hold"]
    await desk.client.submit(chain("a"), saga_id="s1", start=False)
    assert (await desk.client.get("s1")).state is SagaState.CREATED
    assert desk.world.ran == [], "created but not started never runs"
    await desk.stub.StartSaga(pb.StartSagaRequest(saga_id="s1"))
    again = await desk.refusal("StartSaga", pb.StartSagaRequest(saga_id="s1"))
    assert (again.status, again.detail.code) == (Code.FAILED_PRECONDITION, "wrong_state")
    assert again.message == 'Saga "s1" has been started already.'
    desk.world.gate.set()
    await desk.client.wait("s1", timeout_s=20)
    late = await desk.refusal("StartSaga", pb.StartSagaRequest(saga_id="s1"))
    assert late.message == 'Saga "s1" has ended (done) and cannot be started. Submit it under another id.'


async def test_another_saga_under_the_same_id_is_refused(desk: Desk) -> None:
    await desk.client.run(chain("a"), saga_id="s1", timeout_s=20)
    assert not (await desk.client.submit(chain("a"), saga_id="s1")).created
    refusal = await desk.refusal("SubmitSaga", pb.SubmitSagaRequest(saga_id="s1", definition=definition_to_proto(chain("b"))))
    assert (refusal.status, refusal.detail.code) == (Code.ALREADY_EXISTS, "saga_exists")
    assert refusal.detail.saga_id == "s1"


@pytest.mark.parametrize(
    ("method", "message", "sentence"),
    [
        ("ListSagas", pb.ListSagasRequest(page_size=1001), "A page holds at most 1000 sagas, not 1001."),
        ("ListSagas", pb.ListSagasRequest(page_token="made up"), '"made up" is not a page token.'),
        ("WaitSaga", pb.WaitSagaRequest(saga_id="s1", timeout_s=float("nan")), "A wait lasts between 0 and 60 seconds, not nan."),
        ("WaitSaga", pb.WaitSagaRequest(saga_id="s1", timeout_s=-1), "A wait lasts between 0 and 60 seconds, not -1.0."),
        (
            "RegisterActionServer",
            pb.RegisterActionServerRequest(instance_id="i1", address="nowhere"),
            'Action server "i1" gave the address "nowhere": it must be "host:port"',
        ),
        (
            "RegisterActionServer",
            pb.RegisterActionServerRequest(instance_id="i1", address="0.0.0.0:1"),
            'Action server "i1" gave the address "0.0.0.0:1", which nobody can call.',
        ),
        (
            "RegisterActionServer",
            pb.RegisterActionServerRequest(address="h:1"),
            'The instance id "" of an action server is not valid',
        ),
    ],
)
async def test_other_bad_input(desk: Desk, method: str, message: Any, sentence: str) -> None:
    refusal = await desk.refusal(method, message)
    assert refusal.status is Code.INVALID_ARGUMENT
    assert sentence in refusal.message


async def test_draining_an_unknown_node_is_not_found(desk: Desk) -> None:
    refusal = await desk.refusal("DrainNode", pb.DrainNodeRequest(name="n7"))
    assert (refusal.status, refusal.detail.code) == (Code.NOT_FOUND, "node_not_found")
    assert refusal.message == 'No SEC node called "n7" holds a session.'


async def test_an_output_that_is_too_large_is_not_taken_for_a_failure(desk: Desk) -> None:
    """It took effect, so the action is undone: the saga ends without its effect."""
    undone: list[str] = []
    server = ActionServer("large", store=MemoryStore(), max_output_bytes=1_000_000)

    def undo(call: Call) -> None:
        undone.append(call.node)

    server.action("large")(lambda call: "x" * 300_000).undo(undo)
    await desk.cluster.serve(server)
    definition = saga(
        dp.NodeDefinition(name="a", action=dp.ActionNode(action="large", retry=common_pb2.RetryPolicy(max_attempts=1)))
    )
    await desk.stub.SubmitSaga(pb.SubmitSagaRequest(saga_id="s1", definition=definition))
    result = await desk.client.wait("s1", timeout_s=20)
    assert result.state is SagaState.UNDONE
    assert result.errors[0].code == "output_too_large"
    assert "at most 262144 are kept" in result.errors[0].message
    assert undone == ["a"]


async def test_while_the_store_is_away_calls_say_so_and_the_node_comes_back_by_itself(desk: Desk) -> None:
    member = desk.cluster.members["n1"]
    member.kv.partition(True)
    refusal = await desk.refusal("GetSaga", pb.GetSagaRequest(saga_id="s1"))
    assert (refusal.status, refusal.detail.code) == (Code.UNAVAILABLE, "store_unavailable")
    assert refusal.message.startswith("The store cannot be reached.")
    assert refusal.detail.retryable
    submit = await desk.refusal("SubmitSaga", pb.SubmitSagaRequest(saga_id="s1", definition=CHAIN))
    assert submit.status is Code.UNAVAILABLE
    await until(lambda: not member.node.serving)
    member.kv.partition(False)
    await until(lambda: member.node.serving)
    assert (await desk.client.run(chain("a"), saga_id="s1", timeout_s=20)).state is SagaState.DONE


async def test_more_problems_than_a_status_has_room_for_are_counted(desk: Desk) -> None:
    nodes = [step(f"no name {number} {'ü' * 40}") for number in range(90)]
    refusal = await desk.refusal("SubmitSaga", pb.SubmitSagaRequest(saga_id="s1", definition=saga(*nodes)))
    assert refusal.status is Code.INVALID_ARGUMENT
    assert refusal.message.endswith("…")
    problems = refusal.detail.problems
    assert len(problems) > 5
    assert all("no name" in problem for problem in problems[:-1])
    assert problems[-1] == f"There are {91 - len(problems) + 1} more problems."


async def test_a_problem_that_is_longer_than_a_status_is_cut(desk: Desk) -> None:
    refusal = await desk.refusal("SubmitSaga", pb.SubmitSagaRequest(saga_id="s1", definition=saga(step("ü" * 5000))))
    assert refusal.status is Code.INVALID_ARGUMENT
    assert refusal.detail.problems[0].endswith("…")
