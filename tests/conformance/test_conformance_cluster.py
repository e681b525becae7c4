"""The rows at a real cluster: SEC nodes, etcd and action servers are processes, and everything goes through the public API.

What needs an injected error or an injected repeat stands in test_conformance_injections.py. Elsewhere an error of the demo saga comes from its
action server, which fails where the saga's params say so.
"""

import asyncio
import itertools
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from click.testing import CliRunner
from conformance_support import (
    DEMO_NODES,
    DONE,
    SETTLE_S,
    STUCK,
    UNWOUND,
    Recoveries,
    Theatre,
    chain,
    join,
    kinds,
    log_of,
    states,
)
from google.rpc import status_pb2
from sec_client import (
    ActionNotOffered,
    InvalidDefinition,
    RetryPolicy,
    Saga,
    SagaNotFound,
    SagaState,
    SagaView,
    WrongState,
    action,
    signal,
    subsaga,
)
from sec_client import aio as sec_aio
from sec_model.codec import definition_to_proto
from sec_model.commands import NodePath, SkipUndo
from sec_model.graph import MAX_NODES
from sec_protos.v1 import common_pb2
from sec_protos.v1 import coordinator_pb2 as pb
from sec_protos.v1 import definition_pb2 as dp
from secctl.__main__ import cli as secctl
from secctl.render import tree
from store_support import append
from test_conformance_core import WRONG
from waiting_support import eventually

from examples.demo_provision.saga import demo_provision
from sec.cli import main as sec
from sec.core.records import Epoch, SagaId, SecNodeName, Started
from sec.store.commit import GroupCommit
from sec.store.errors import Fenced
from sec.store.sagas import SagaStore

pytestmark = pytest.mark.timeout(300)  # the first of the recovered sagas waits for a restart of the whole cluster
_numbers = itertools.count(1)


def row(name: str) -> pytest.MarkDecorator:
    return pytest.mark.conformance(row=name, level="cluster")


def new_id() -> str:
    return f"c-{next(_numbers)}"


# the demo saga


@row("nodes in order of insertion")
@row("status before start")
async def test_demo_status_before_start(theatre: Theatre, client: sec_aio.Client) -> None:
    await client.submit(demo_provision(), saga_id=(saga_id := new_id()), start=False)
    view = await client.get(saga_id)
    assert [n.node for n in view.nodes] == DEMO_NODES
    assert states(view) == dict.fromkeys(DEMO_NODES, "blocked") | {"instance_id": "queued"}
    assert view.state is SagaState.CREATED


@row("run")
async def test_demo_run(theatre: Theatre, client: sec_aio.Client) -> None:
    result = await theatre.run_demo(client, saga_id := new_id())
    view = await client.get(saga_id)
    assert states(view) == DONE
    assert result.state is SagaState.DONE
    assert result.output["volume_id"] == view["volume_id"].output.value()  # type: ignore[union-attr] # it is there: the saga is done
    assert view.output == result.output, "the output is that of the last node"
    assert theatre.demo_effects(saga_id) == (sorted(set(DEMO_NODES) - {"server_alloc_params", "server_alloc"}), [])
    assert theatre.demo_inventory.problems(saga_id) == []


@row("recovered from a complete log")
async def test_demo_recovered_from_a_complete_log(recoveries: Recoveries) -> None:
    before, after = recoveries.before["complete"], recoveries.after["complete"]
    assert states(after.view) == DONE
    assert after == before, "log, outputs and effects are what they were"


@row("recovered with the last 5 records cut off")
async def test_demo_recovered_with_the_last_5_records_cut_off(theatre: Theatre, recoveries: Recoveries) -> None:
    before, after = recoveries.before["done"], recoveries.after["done"]
    assert kinds(before.log)[-5:] == [
        "started instance_boot",
        "succeeded instance_boot",
        "started print",
        "succeeded print",
        "done",
    ]
    assert recoveries.added("done") == ["owner_changed", *kinds(before.log)[-5:]], "boot is redone"
    assert states(after.view) == DONE
    assert after.view.output == before.view.output
    assert after.effects == before.effects, "which has its effect once all the same"
    assert theatre.demo_inventory.problems("r-done") == []


@row("a failed one recovered with the last 3 records cut off")
async def test_demo_failed_recovered_with_the_last_3_records_cut_off(theatre: Theatre, recoveries: Recoveries) -> None:
    before, after = recoveries.before["failed"], recoveries.after["failed"]
    assert kinds(before.log)[-3:] == ["undo_started instance_id", "undo_finished instance_id", "done"]
    assert recoveries.added("failed") == ["owner_changed", *kinds(before.log)[-3:]], "the unwinding goes on"
    assert states(after.view) == UNWOUND
    assert after.view.state is SagaState.UNDONE
    assert [e.node for e in after.view.errors] == ["instance_boot"]
    assert theatre.demo_inventory.is_empty("r-failed")
    assert theatre.demo_inventory.problems("r-failed") == []


@row("a stuck one recovered")
async def test_demo_stuck_recovered(recoveries: Recoveries) -> None:
    before, after = recoveries.before["stuck"], recoveries.after["stuck"]
    assert after.view.state is SagaState.STUCK
    assert states(after.view) == STUCK
    assert after.view.errors == before.view.errors
    assert set(recoveries.added("stuck")) == {"owner_changed"}, "unchanged but for its owner"
    assert after.effects == before.effects


# calls


@row("plain: 1/0, 1/0")
async def test_plain(theatre: Theatre, client: sec_aio.Client) -> None:
    result = await client.run(chain("n1", "n2"), saga_id=(saga_id := new_id()), timeout_s=SETTLE_S)
    assert result.state is SagaState.DONE
    assert (theatre.done(saga_id), theatre.undone(saga_id)) == ({"n1": 1, "n2": 1}, {})
    wanted = ["created", "start_requested", "started n1", "succeeded n1", "started n2", "succeeded n2", "done"]
    assert kinds(await log_of(client, saga_id)) == wanted, "no call was repeated"


# definition errors


async def refused(theatre: Theatre, message: pb.SubmitSagaRequest) -> tuple[grpc.StatusCode, list[str]]:
    """Submits without the checks of the client, and sees that nothing is written. The status, and the problems or else the message."""
    before = await theatre.written()
    async with theatre.stub() as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.SubmitSaga(message, timeout=SETTLE_S)
    after = await theatre.written()
    live = (theatre.keys.live, theatre.keys.createds)
    assert [k for k in after if k not in before and not k.startswith(live)] == [], "nothing is written"
    assert not any(message.saga_id.encode() in key for key in after)
    error = caught.value
    detail = common_pb2.ErrorDetail()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            assert status_pb2.Status.FromString(value).details[0].Unpack(detail)  # type: ignore[arg-type]
    return error.code(), list(detail.problems) or [error.details() or ""]


@pytest.mark.parametrize("name", [pytest.param(name, marks=row(name), id=name) for name in WRONG])
async def test_a_wrong_definition(theatre: Theatre, name: str) -> None:
    definition, sentence = WRONG[name]
    message = pb.SubmitSagaRequest(saga_id=new_id(), definition=definition_to_proto(definition))
    assert await refused(theatre, message) == (grpc.StatusCode.INVALID_ARGUMENT, [sentence])


@row("an empty parallel stage")
async def test_an_empty_parallel_stage(client: sec_aio.Client) -> None:
    saga = Saga("s").append(action("a", "step")).append_parallel()
    with pytest.raises(InvalidDefinition, match='A parallel stage of saga "s" is empty') as caught:
        await client.submit(saga, saga_id=(saga_id := new_id()))
    assert caught.value.problems == ('A parallel stage of saga "s" is empty.',)
    with pytest.raises(SagaNotFound):
        await client.get(saga_id)


@row("an invalid saga is stored before it is validated")
async def test_an_invalid_saga_is_not_stored(theatre: Theatre, client: sec_aio.Client) -> None:
    definition = dp.SagaDefinition(name="s", nodes=[dp.NodeDefinition(name="a")])
    status, problems = await refused(theatre, pb.SubmitSagaRequest(saga_id=(saga_id := new_id()), definition=definition))
    assert status is grpc.StatusCode.INVALID_ARGUMENT
    assert 'Node "a" is of no kind that this version knows: action, constant, signal, timer, subsaga.' in problems
    with pytest.raises(SagaNotFound):
        await client.get(saga_id)


@row("an action that no action server offers")
async def test_an_action_that_is_not_offered(theatre: Theatre, client: sec_aio.Client) -> None:
    saga = Saga("s").append(action("a", "step")).append(action("b", "nobodys"))
    with pytest.raises(ActionNotOffered, match='"nobodys"'):
        await client.submit(saga, saga_id=(saga_id := new_id()), require_actions=True)
    with pytest.raises(SagaNotFound):
        await client.get(saga_id)
    submitted = await client.submit(saga, saga_id=saga_id)
    assert len(submitted.warnings) == 1
    assert '"nobodys"' in submitted.warnings[0]

    async def waits() -> SagaView | None:
        view = await client.get(saga_id)
        return view if view["a"].state == "done" else None

    view = await eventually(waits)
    assert view["b"].state == "queued"
    assert '"nobodys"' in view["b"].detail


@row("more bytes than the limit")
async def test_more_bytes_than_the_limit(theatre: Theatre) -> None:
    large = common_pb2.Payload(data=b'"' + b"x" * 256 * 1024 + b'"')
    params = pb.SubmitSagaRequest(saga_id=new_id(), definition=definition_to_proto(chain("a")), params=large)
    constant = dp.SagaDefinition(name="s", nodes=[dp.NodeDefinition(name="k", constant=dp.ConstantNode(value=large))])
    for message in (params, pb.SubmitSagaRequest(saga_id=new_id(), definition=constant)):
        status, (sentence,) = await refused(theatre, message)
        assert status is grpc.StatusCode.INVALID_ARGUMENT
        assert "bytes" in sentence


def test_the_saga_with_too_many_nodes_is_no_more_than_that() -> None:
    definition, _ = WRONG["more nodes than the limit"]
    assert len(definition.nodes) == MAX_NODES + 1


# API behaviour


@row("created but not started never runs")
async def test_created_but_not_started(theatre: Theatre, client: sec_aio.Client) -> None:
    await client.submit(chain("a"), saga_id=(saga_id := new_id()), start=False)
    for name in theatre.cluster.names:  # whoever starts, leads or takes over leaves it alone
        await theatre.cluster.terminate_async(name)
    await theatre.ready()
    await client.run(chain("a"), saga_id=new_id(), timeout_s=SETTLE_S)
    assert kinds(await log_of(client, saga_id)) == ["created"]
    assert (await client.get(saga_id)).state is SagaState.CREATED
    assert theatre.inventory(saga_id) == []


@row("start of an unknown saga")
async def test_start_of_an_unknown_saga(client: sec_aio.Client) -> None:
    with pytest.raises(SagaNotFound, match=r'There is no saga "nobodys"\.'):
        await client.start("nobodys")


@row("double start")
async def test_double_start(theatre: Theatre, client: sec_aio.Client) -> None:
    theatre.hold()
    await client.submit(chain("a"), saga_id=(saga_id := new_id()), params={"hold": ["a"]}, start=False)
    await client.start(saga_id)
    with pytest.raises(WrongState, match=f'Saga "{saga_id}" has been started already'):
        await client.start(saga_id)
    theatre.gate.touch()
    assert (await client.wait(saga_id, timeout_s=SETTLE_S)).state is SagaState.DONE
    assert theatre.done(saga_id) == {"a": 1}


@row("start of a finished saga")
async def test_start_of_a_finished_saga(client: sec_aio.Client) -> None:
    await client.run(chain("a"), saga_id=(saga_id := new_id()), timeout_s=SETTLE_S)
    with pytest.raises(WrongState, match=rf'Saga "{saga_id}" has ended \(done\) and cannot be started'):
        await client.start(saga_id)


@row("same id and same content twice: the one saga")
async def test_submitted_twice(theatre: Theatre) -> None:
    saga_id = new_id()

    async def submit(address: str) -> bool:
        async with sec_aio.Client([address]) as one:
            return (await one.submit(chain("a"), saga_id=saga_id, params={"x": 1})).created

    created = await asyncio.gather(*(submit(address) for address in theatre.cluster.addresses * 2))
    assert sorted(created) == [False] * 5 + [True]
    async with theatre.client() as client:
        assert (await client.wait(saga_id, timeout_s=SETTLE_S)).state is SagaState.DONE
    assert theatre.done(saga_id) == {"a": 1}


@row("list is paged")
async def test_list_is_paged(client: sec_aio.Client) -> None:
    ids = [f"paged-{number}" for number in range(7)]
    for saga_id in ids:
        await client.submit(chain("a"), saga_id=saga_id, start=False, labels={"row": "paged"})
    pages, token = [], ""
    while True:
        page = await client.list_page(labels={"row": "paged"}, page_size=3, page_token=token)
        pages.append([s.saga_id for s in page.sagas])
        token = page.next_page_token
        if not token:
            break
    assert all(len(page) <= 3 for page in pages)
    assert list(itertools.chain(*pages)) == ids


@row("list is stable under concurrent submits")
async def test_list_is_stable(client: sec_aio.Client) -> None:
    ids = [f"stable-{number}" for number in range(0, 10, 2)]
    for saga_id in ids:
        await client.submit(chain("a"), saga_id=saga_id, start=False, labels={"row": "stable"})
    first = await client.list_page(labels={"row": "stable"}, page_size=2)
    for number in range(1, 10, 2):
        await client.submit(chain("a"), saga_id=f"stable-{number}", start=False, labels={"row": "stable"})
    await client.start("stable-8")
    await client.wait("stable-8", timeout_s=SETTLE_S)
    found, token = [s.saga_id for s in first.sagas], first.next_page_token
    while token:
        page = await client.list_page(labels={"row": "stable"}, page_size=2, page_token=token)
        found, token = [*found, *(s.saga_id for s in page.sagas)], page.next_page_token
    assert found == ids, "as it stood when the listing began"


@row("list filters on state, name, label and owner")
async def test_list_filters(theatre: Theatre, client: sec_aio.Client) -> None:
    theatre.hold()
    labels = {"row": "filters"}
    await client.submit(chain("a", name="one"), saga_id="f-held", params={"hold": ["a"]}, labels=labels)
    await client.submit(chain("a", name="two"), saga_id="f-created", labels=labels, start=False)
    await client.submit(chain("a", name="two"), saga_id="f-other", labels={"row": "others"}, start=False)
    owner = await theatre.owner(client, "f-held")

    async def listed(**filters: Any) -> list[str]:
        return [s.saga_id async for s in client.list(**filters)]

    assert await listed(labels=labels) == ["f-held", "f-created"]
    assert await listed(labels=labels, states=[SagaState.CREATED]) == ["f-created"]
    assert await listed(labels=labels, name="one") == ["f-held"]
    assert await listed(labels=labels, owner=owner) == ["f-held"]
    assert await listed(labels=labels, owner=next(n for n in theatre.cluster.names if n != owner)) == []
    theatre.gate.touch()
    await client.wait("f-held", timeout_s=SETTLE_S)


@row("a result waiter survives the death of the node it asked")
async def test_a_waiter_survives_the_node_it_asked(theatre: Theatre) -> None:
    theatre.hold()
    async with theatre.client() as client:  # it asks the first node first
        await client.submit(chain("a"), saga_id=(saga_id := new_id()), params={"hold": ["a"]})
        await theatre.held(saga_id, "a", "do")
        waiting = asyncio.create_task(client.wait(saga_id, timeout_s=SETTLE_S))
        await client.get(saga_id)  # the wait, which was begun before, is at the node by now
        theatre.cluster.kill(theatre.cluster.names[0])
        assert not waiting.done()
        theatre.gate.touch()
        assert (await waiting).state is SagaState.DONE


@row("several failures at once: the result names each, the first by time first")
async def test_several_failures(theatre: Theatre, client: sec_aio.Client) -> None:
    theatre.hold()
    saga = Saga("s").append_parallel(*(action(n, "step") for n in ("b", "c", "d"))).append(action("z", "step"))
    await client.submit(saga, saga_id=(saga_id := new_id()), params={"fail": ["b", "d"], "hold": ["b"]})
    await theatre.held(saga_id, "b", "do")

    async def unwinds() -> bool:
        return (await client.get(saga_id)).state is SagaState.UNWINDING

    await eventually(unwinds)
    theatre.gate.touch()
    result = await client.wait(saga_id, timeout_s=SETTLE_S)
    assert [e.node for e in result.errors] == ["d", "b"]
    times = [e.time for e in result.errors]
    assert all(times)
    assert times == sorted(times)  # type: ignore[type-var] # each is a time: see the line above


# status text


@row("a tree, indented by parallel stage and subsaga: state, label, produces")
@row("a failed node and a failed-then-unwound one look different")
async def test_the_tree(theatre: Theatre, client: sec_aio.Client) -> None:
    await theatre.run_demo(client, saga_id := new_id(), fail_at="instance_boot")
    assert tree(await client.get(saga_id)).plain.splitlines() == [
        f'saga "{saga_id}" (demo-provision): undone',
        '├─ undone: create_instance, produces "instance_id"',
        '├─ undone: server_alloc_params, produces "server_alloc_params"',
        "├─ in parallel",
        '│  ├─ undone: allocate_ip, produces "instance_ip"',
        '│  ├─ undone: create_volume, produces "volume_id"',
        '│  └─ undone: subsaga server_alloc, produces "server_alloc"',
        '│     ├─ undone: choose_server, produces "server_alloc/server_id"',
        '│     └─ undone: reserve_server, produces "server_alloc/server_reserve"',
        '├─ undone: configure_instance, produces "instance_configure"',
        '├─ undone: attach_volume, produces "volume_attach"',
        '├─ failed: boot_instance, produces "instance_boot"',
        '└─ abandoned: print_summary, produces "print"',
        "errors:",
        '  node "instance_boot": The params of the saga want the do of this node to fail. [on_demand]',
    ]


@pytest.mark.parametrize("held", [pytest.param("do", marks=[row("state blocked"), row("state queued"), row("state working")])])
async def test_states_on_the_way_forward(theatre: Theatre, client: sec_aio.Client, held: str) -> None:
    theatre.hold()
    saga = Saga("s").append(action("a", "step")).append_parallel(action("b", "step"), action("c", "nobodys"))
    saga.append(action("z", "step"))
    await client.submit(saga, saga_id=(saga_id := new_id()), params={"hold": ["b"]})
    await theatre.held(saga_id, "b", held)
    assert states(await client.get(saga_id)) == {"a": "done", "b": "working", "c": "queued", "z": "blocked"}
    theatre.gate.touch()


@row("state done")
@row("state undo-queued")
@row("state undoing")
@row("state undone")
@row("state failed")
@row("state abandoned")
async def test_states_on_the_way_back(theatre: Theatre, client: sec_aio.Client) -> None:
    theatre.hold()
    await client.run(chain("a"), saga_id=(done := new_id()), timeout_s=SETTLE_S)
    await client.submit(chain("a", "b", "c", "d", "e"), saga_id=(saga_id := new_id()), params={"fail": ["d"], "undo_hold": ["b"]})
    await theatre.held(saga_id, "b", "undo")
    shown = {"a": "undo-queued", "b": "undoing", "c": "undone", "d": "failed", "e": "abandoned"}
    assert states(await client.get(saga_id)) == shown
    assert states(await client.get(done)) == {"a": "done"}
    theatre.gate.touch()
    await client.wait(saga_id, timeout_s=SETTLE_S)


@row("state undo-failed")
async def test_an_undo_that_failed(client: sec_aio.Client) -> None:
    params = {"fail": ["b"], "undo_fail": ["a"]}
    await client.run(chain("a", "b"), saga_id=(saga_id := new_id()), params=params, timeout_s=SETTLE_S)
    assert states(await client.get(saga_id)) == {"a": "undo-failed", "b": "failed"}


@row("state undo-skipped")
async def test_an_undo_that_was_skipped(theatre: Theatre, client: sec_aio.Client) -> None:
    params = {"fail": ["b"], "undo_fail": ["a"]}
    await client.run(chain("a", "b"), saga_id=(saga_id := new_id()), params=params, timeout_s=SETTLE_S)
    await client.taken_up(saga_id, await client.command(saga_id, SkipUndo(NodePath("a"), "it may stay")))
    assert (await client.wait(saga_id, timeout_s=SETTLE_S)).state is SagaState.UNDONE
    assert states(await client.get(saga_id)) == {"a": "undo-skipped", "b": "failed"}
    assert theatre.inventory(saga_id) == ["a"], "its effect stays in the world"


@row("state retrying")
async def test_a_call_that_is_repeated(theatre: Theatre, client: sec_aio.Client) -> None:
    theatre.hold()
    patient = RetryPolicy(max_attempts=1000, attempt_timeout_s=0.2, initial_backoff_s=0.01, max_backoff_s=0.01)
    saga = Saga("s").append(action("a", "step", retry=patient))
    await client.submit(saga, saga_id=(saga_id := new_id()), params={"hold": ["a"]})

    async def retrying() -> bool:
        return (await client.get(saga_id))["a"].state == "retrying"

    await eventually(retrying)
    theatre.gate.touch()
    assert (await client.wait(saga_id, timeout_s=SETTLE_S)).state is SagaState.DONE


@row("state waiting")
async def test_a_node_that_waits_for_a_signal(client: sec_aio.Client) -> None:
    saga = Saga("s").append(action("a", "step")).append(signal("go"))
    await client.submit(saga, saga_id=(saga_id := new_id()))

    async def waiting() -> bool:
        return states(await client.get(saga_id)) == {"a": "done", "go": "waiting"}

    await eventually(waiting)
    await client.signal(saga_id, "go", {"by": "ada"})
    assert (await client.wait(saga_id, timeout_s=SETTLE_S)).result() == {"by": "ada"}


@row("state outcome-unknown")
async def test_an_outcome_that_stays_unknown(theatre: Theatre, client: sec_aio.Client) -> None:
    """The call of a is lost when the saga is stuck already: it is not repeated, and nothing is undone until an operator decides."""
    theatre.hold()
    saga = Saga("s").append_parallel(*(action(n, "step") for n in ("a", "b", "c"))).append(action("z", "step"))
    await client.submit(saga, saga_id=(saga_id := new_id()), params={"hold": ["a"], "fail": ["c"], "undo_fail": ["b"]})
    await theatre.held(saga_id, "a", "do")

    async def shown(state: SagaState, a: str) -> bool:
        view = await client.get(saga_id)
        return (view.state, view["a"].state) == (state, a)

    await eventually(lambda: shown(SagaState.STUCK, "working"))
    theatre.restart_effects()
    await eventually(lambda: shown(SagaState.STUCK, "outcome-unknown"))


# bugs of the prior art


@row("two sources of truth for a node's state that tear")
async def test_every_node_says_what_the_log_says(theatre: Theatre, client: sec_aio.Client) -> None:
    theatre.hold()
    await client.submit(join(), saga_id=(saga_id := new_id()), params={"fail": ["c"], "undo_hold": ["b"]})
    await theatre.held(saga_id, "b", "undo")
    views = []
    for address in theatre.cluster.addresses:
        async with sec_aio.Client([address]) as one:
            views.append(await one.get(saga_id))
    assert views[0] == views[1] == views[2], "the owner says nothing else than who reads the log alone"
    theatre.gate.touch()
    await client.wait(saga_id, timeout_s=SETTLE_S)


@row("two sources of truth for a node's state that tear")
async def test_an_exported_log_says_offline_what_the_cluster_says(theatre: Theatre, client: sec_aio.Client, tmp_path: Path) -> None:
    file, addresses = tmp_path / "log.jsonl", ",".join(theatre.cluster.addresses)
    await theatre.run_demo(client, saga_id := new_id(), fail_at="instance_boot", undo_fail_at="instance_id")
    given = ["--sec", addresses, "saga", "log", saga_id, "--export", str(file)]
    exported = await asyncio.to_thread(CliRunner().invoke, secctl, given)
    assert exported.exit_code == 0, exported.output
    recovered = CliRunner().invoke(
        sec, ["debug", "recover", str(file), "--definition", "examples.demo_provision.saga:demo_provision"]
    )
    assert recovered.exit_code == 0, recovered.output
    view = await client.get(saga_id)
    assert recovered.stdout.startswith(tree(view).plain), "the fold of the log, with no cluster at hand"
    assert "\ncourse: stuck\n" in recovered.stdout
    assert f"epoch {view.epoch}, written by {view.summary.owner}: records 1 to {view.next_sequence - 1}\n" in recovered.stdout


@row("a join that never started while one parent is undone makes recovery refuse the saga")
async def test_a_join_that_never_started(recoveries: Recoveries) -> None:
    before, after = recoveries.before["join"], recoveries.after["join"]
    kept = kinds(before.log)[:-3]
    assert "undo_finished b" in kept
    assert "started z" not in kinds(before.log)
    assert states(after.view) == {"a": "undone", "b": "undone", "c": "failed", "z": "abandoned"}
    assert after.view.state is SagaState.UNDONE


@row("log records without sequence, time or writer")
async def test_log_records_are_whole(theatre: Theatre, client: sec_aio.Client) -> None:
    await theatre.run_demo(client, saga_id := new_id(), fail_at="print")
    log = await log_of(client, saga_id)
    assert [r.sequence for r in log] == list(range(1, len(log) + 1))
    assert {r.writer for r in log} <= set(theatre.cluster.names)
    assert all(r.time is not None and r.epoch > 0 for r in log)


@row("log writes that are not fenced by ownership")
async def test_a_former_owner_cannot_write(theatre: Theatre, client: sec_aio.Client) -> None:
    theatre.hold()
    await client.submit(chain("a", "b"), saga_id=(saga_id := new_id()), params={"hold": ["a", "b"]})
    old = await theatre.held(saga_id, "a", "do")
    owner = await theatre.owner(client, saga_id)
    theatre.cluster.kill(owner)
    await theatre.takeover(client, saga_id, owner)
    log = await log_of(client, saga_id)
    async with theatre.kv() as kv:
        former = SagaStore(kv, theatre.keys, GroupCommit(kv, timeout_s=10), SecNodeName(owner), lambda: time.time_ns() // 1000)
        with pytest.raises(Fenced):
            await append(
                former,
                SagaId(saga_id),
                Epoch(old),
                len(log) + 1,
                (Started("b"),),
                summary=None,
                ended=False,
                give_up=lambda: False,  # type: ignore[arg-type] # a path
            )
    assert await log_of(client, saga_id) == log
    theatre.gate.touch()
    assert (await client.wait(saga_id, timeout_s=SETTLE_S)).state is SagaState.DONE
    assert theatre.done(saga_id) == {"a": 1, "b": 1}


@row("status blocks while the store is written")
async def test_status_while_the_owner_hangs(theatre: Theatre, client: sec_aio.Client) -> None:
    """The owner stands still, in the middle of whatever it writes: everybody else answers."""
    theatre.hold()
    await client.submit(chain("a"), saga_id=(saga_id := new_id()), params={"hold": ["a"]})
    await theatre.held(saga_id, "a", "do")
    owner = await theatre.owner(client, saga_id)
    others = [theatre.cluster.address(n) for n in theatre.cluster.names if n != owner]
    async with sec_aio.Client(others, timeout_s=5) as awake:
        await awake.get(saga_id)  # connects
        theatre.cluster.pause(owner)
        try:
            view = await awake.get(saga_id)
        finally:
            theatre.cluster.resume(owner)
    assert states(view) == {"a": "working"}
    assert view.summary.owner == owner, "it has not been taken over yet"
    theatre.gate.touch()
    await client.wait(saga_id, timeout_s=SETTLE_S)


@row("one unrecoverable saga stops the recovery of all")
async def test_a_damaged_log_stops_nobody_else(recoveries: Recoveries, client: sec_aio.Client) -> None:
    damaged = await client.get("r-damaged")
    assert damaged.state is SagaState.CORRUPT
    assert '"r-damaged"' in (damaged.summary.error.message if damaged.summary.error else "")
    assert recoveries.after["bystander"].view.state is SagaState.DONE
    assert recoveries.added("bystander")[0] == "owner_changed"
    assert "r-damaged" in [s.saga_id async for s in client.list(states=[SagaState.CORRUPT])]


@row("paging cuts logs short")
async def test_a_log_of_several_pages_is_read_and_recovered(theatre: Theatre, recoveries: Recoveries) -> None:
    before, after = recoveries.before["long"], recoveries.after["long"]
    assert len(before.log) > 1000, "longer than a page"
    assert [r.sequence for r in after.log] == list(range(1, len(after.log) + 1))
    assert after.view.state is SagaState.DONE
    assert set(states(after.view).values()) == {"done"}
    assert len(recoveries.added("long")) == 6, "the owner, and what was cut off"
    async with theatre.stub() as stub:
        read, sequence = [], 1
        while sequence:
            page = await stub.GetSagaLog(pb.GetSagaLogRequest(saga_id="r-long", from_sequence=sequence, limit=97), timeout=SETTLE_S)
            read += [r.sequence for r in page.records]
            sequence = page.next_sequence
    assert read == [r.sequence for r in after.log]


@row("node names of a subsaga collide with those outside")
async def test_equal_names_inside_and_outside(theatre: Theatre, client: sec_aio.Client) -> None:
    inner = Saga("inner").append(action("a", "step")).append(action("b", "step", reads=["a"]))
    saga = Saga("s").append(action("a", "step")).append(subsaga("x", inner)).append(action("b", "step", reads=["a", "x"]))
    result = await client.run(saga, saga_id=(saga_id := new_id()), params={"fail": []}, timeout_s=SETTLE_S)
    assert result.state is SagaState.DONE
    view = await client.get(saga_id)
    outputs = {n.node: n.output.value() for n in view.nodes if n.output is not None}
    assert outputs == {"a": "a", "x": "x/b", "x/a": "x/a", "x/b": "x/b", "b": "b"}
    assert theatre.done(saga_id) == {"a": 1, "x/a": 1, "x/b": 1, "b": 1}
    failed = await client.run(saga, saga_id=(other := new_id()), params={"fail": ["x/a"]}, timeout_s=SETTLE_S)
    assert [e.node for e in failed.errors] == ["x/a"]
    assert states(await client.get(other)) == {"a": "undone", "x": "failed", "x/a": "failed", "x/b": "abandoned", "b": "abandoned"}
