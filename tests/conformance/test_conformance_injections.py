"""The rows about injected errors and injected repeats, at a real cluster. Each injection stands before the node that it is for can start.

Two ways give the time for that: an action that nobody offers until the test starts its action server, and an action server that is stopped.
"""

import asyncio
import itertools

import pytest
from click.testing import CliRunner
from cluster_support import counting_server
from conformance_support import DEMO_NODES, SETTLE_S, STUCK, UNWOUND, Theatre, chain, kinds, log_of, states
from sec_client import Saga, SagaResult, SagaState, WrongState, action
from sec_client import aio as sec_aio
from sec_model.commands import Command, InjectError, InjectRepeat, NodePath, Phase
from secctl.__main__ import cli as secctl

from examples.demo_provision.saga import demo_provision
from sec.core.records import SagaId

_numbers = itertools.count(1)
N1, N2, BOOT, NOBODY = NodePath("n1"), NodePath("n2"), NodePath("instance_boot"), NodePath("nobody")


def row(name: str) -> pytest.MarkDecorator:
    return pytest.mark.conformance(row=name, level="cluster")


def new_id() -> str:
    return f"i-{next(_numbers)}"


# calls


REPEATS: dict[str, tuple[list[Command], tuple[int, int], tuple[int, int]]] = {
    "repeat n1 do 2: 2/0, 1/0": ([InjectRepeat(N1, Phase.DO, 2)], (2, 0), (1, 0)),
    **{
        f"repeat n1 {do}/{undo} and n2 fails: {do}/{undo}, 0/0": (
            [InjectRepeat(N1, Phase.DO, do), InjectRepeat(N1, Phase.UNDO, undo), InjectError(N2, Phase.DO)],
            (do, undo),
            (0, 0),
        )
        for do, undo in ((2, 1), (2, 2), (1, 2), (3, 5))
    },
    "n1 fails: nothing is called": ([InjectError(N1, Phase.DO)], (0, 0), (0, 0)),
}


@pytest.mark.parametrize("case", [pytest.param(name, marks=row(name), id=name) for name in REPEATS])
async def test_calls_are_made_as_often_as_was_injected(theatre: Theatre, client: sec_aio.Client, case: str) -> None:
    injections, n1, n2 = REPEATS[case]
    saga_id = new_id()
    counted = f"counted-{saga_id}"
    await client.submit(Saga("s").append(action("n1", counted)).append(action("n2", counted)), saga_id=saga_id)
    for injection in injections:
        await client.taken_up(saga_id, await client.command(saga_id, injection))
    assert (await client.get(saga_id))["n1"].state == "queued", "nobody offers its action yet"
    async with counting_server(theatre.cluster.addresses, counted) as calls:
        result = await client.wait(saga_id, timeout_s=SETTLE_S)
    assert (calls.called("n1"), calls.called("n2")) == (n1, n2)
    failing = [i.node for i in injections if isinstance(i, InjectError)]
    assert result.state is (SagaState.UNDONE if failing else SagaState.DONE)
    assert [(e.node, e.code) for e in result.errors] == [(node, "injected") for node in failing]
    assert +calls.effects == ({} if failing else {"n1": 1, "n2": 1}), "called often, and had once or not at all"


# the demo saga


async def demo_with_an_injected_error(theatre: Theatre, client: sec_aio.Client, saga_id: str, **params: str) -> SagaResult:
    """Runs the demo saga with an error injected at instance_boot."""
    with theatre.demo_stopped():
        await client.submit(demo_provision(), saga_id=saga_id, params=params)
        await client.taken_up(saga_id, await client.command(saga_id, InjectError(BOOT, Phase.DO)))
    return await client.wait(saga_id, timeout_s=SETTLE_S)


@row("error injected at instance_boot")
async def test_demo_error_at_instance_boot(theatre: Theatre, client: sec_aio.Client) -> None:
    result = await demo_with_an_injected_error(theatre, client, saga_id := new_id())
    assert states(await client.get(saga_id)) == UNWOUND
    assert result.state is SagaState.UNDONE
    assert [(e.node, e.phase, e.code) for e in result.errors] == [("instance_boot", "do", "injected")], "it names the node"
    did, undid = theatre.demo_effects(saga_id)
    assert did == undid == sorted(set(DEMO_NODES) - {"server_alloc_params", "server_alloc", "instance_boot", "print"})
    assert theatre.demo_inventory.problems(saga_id) == []


@row("error injected at instance_boot, and the undo of instance_id fails for good")
@row("a stuck saga is not a state of its own")
async def test_demo_stuck(theatre: Theatre, client: sec_aio.Client) -> None:
    result = await demo_with_an_injected_error(theatre, client, saga_id := new_id(), undo_fail_at="instance_id")
    assert states(await client.get(saga_id)) == STUCK
    assert result.state is SagaState.STUCK
    assert [(e.node, e.phase) for e in result.errors] == [("instance_boot", "do"), ("instance_id", "undo")]
    assert list(theatre.demo_inventory.existing(saga_id)) == ["instances"]
    assert saga_id in [s.saga_id async for s in client.list(states=[SagaState.STUCK])]
    await client.submit(demo_provision(), saga_id=new_id(), start=False)
    listed = [s.state async for s in client.list(page_size=1000)]
    assert listed[0] is SagaState.STUCK, "stuck ones stand first"


# an unknown node


@pytest.mark.parametrize("phase", Phase, ids=lambda phase: phase.value)
@row("an error injected at an unknown node is accepted silently")
async def test_an_injection_at_an_unknown_node_is_refused(theatre: Theatre, client: sec_aio.Client, phase: Phase) -> None:
    theatre.hold()
    await client.submit(chain("a"), saga_id=(saga_id := new_id()), params={"hold": ["a"]})
    await theatre.held(saga_id, "a", "do")
    sentence = f'Saga "{saga_id}" has no node "nobody".'
    for injection in (InjectError(NOBODY, phase), InjectRepeat(NOBODY, phase, 2)):
        with pytest.raises(WrongState) as caught:
            await client.command(saga_id, injection)
        assert caught.value.message == sentence
    given = ["--sec", ",".join(theatre.cluster.addresses), "saga", "inject", saga_id, "--node", "nobody", "--error"]
    told = await asyncio.to_thread(CliRunner().invoke, secctl, [*given, *(["--undo"] if phase is Phase.UNDO else [])])
    assert told.exit_code != 0
    assert sentence in told.output
    assert [key for key in await theatre.written() if key.startswith(theatre.keys.commands_of(SagaId(saga_id)))] == []
    theatre.gate.touch()
    assert (await client.wait(saga_id, timeout_s=SETTLE_S)).state is SagaState.DONE
    assert kinds(await log_of(client, saga_id)) == ["created", "start_requested", "started a", "succeeded a", "done"]
