"""The commands, against a stand-in for an SEC node."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import click
import grpc
import pytest
from click.testing import CliRunner, Result
from client_support import DEADLINE_S, FakeNode, refusal
from rich.console import Console
from sec_client import aio
from sec_model.codec import definition_from_proto
from sec_protos.v1 import action_server_pb2, commands_pb2, common_pb2, coordinator_pb2, definition_pb2, records_pb2
from secctl import live
from secctl.__main__ import cli

TRIP = """\
name: trip
nodes:
  - {name: hotel, action: book_hotel}
  - {name: flight, action: book_flight, reads: [hotel]}
"""
MODULE = """\
from sec_client import Saga, action
trip = Saga("trip").append(action("hotel", "book_hotel"))
bad = Saga("trip").append(action("hotel", "book_hotel", reads=["car"]))
number = 3
def build():
    return trip.build()
def fall():
    raise KeyError("x")
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SEC_ADDRESSES", raising=False)
    (tmp_path / "trip.yaml").write_text(TRIP)
    (tmp_path / "secctl_trips.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "secctl_trips", raising=False)
    return tmp_path


async def run(node: FakeNode | None, *arguments: str, stdin: str = "") -> Result:
    """Runs the program beside the event loop that serves the stand-in."""
    given = ["--timeout", "5", "--sec", node.address if node is not None else "127.0.0.1:1", *arguments]
    result = await asyncio.to_thread(lambda: CliRunner().invoke(cli, given, input=stdin, catch_exceptions=True))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def saga(state: int = coordinator_pb2.SAGA_STATE_RUNNING) -> coordinator_pb2.Saga:
    return coordinator_pb2.Saga(
        summary=coordinator_pb2.SagaSummary(
            saga_id="s1",
            name="trip",
            state=state,  # type: ignore[arg-type]
        ),
        nodes=[
            coordinator_pb2.NodeStatus(node="hotel", label="Hotel", state=coordinator_pb2.NODE_STATE_WORKING, action="book_hotel")
        ],
        params=common_pb2.Payload(data=b"1"),
        next_sequence=3,
    )


def waited(state: int, **fields: Any) -> coordinator_pb2.WaitSagaResponse:
    return coordinator_pb2.WaitSagaResponse(summary=saga(state).summary, settled=True, **fields)


def accept(node: FakeNode) -> None:
    node.answers["SubmitSaga"] = lambda m: coordinator_pb2.SubmitSagaResponse(
        saga_id=m.saga_id, created=True, warnings=['No action server offers "book_hotel" now.']
    )


async def test_submit_a_file(node: FakeNode) -> None:
    accept(node)
    result = await run(node, "saga", "submit", "trip.yaml", "--id", "s1", "--params", '{"a": 1}', "--label", "k=v", "--start-later")
    assert (result.exit_code, result.stdout) == (0, "s1\n")
    assert result.stderr == 'warning: No action server offers "book_hotel" now.\n'
    [(_, message)] = node.calls
    assert definition_from_proto(message.definition).name == "trip"
    assert (message.params.data, dict(message.labels), message.start_later) == (b'{"a":1}', {"k": "v"}, True)


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ([], None),
        (["--deadline", "1.5h"], definition_pb2.Deadline(after_s=5400, then=definition_pb2.ON_DEADLINE_FAIL)),
        (
            ["--deadline", "90", "--on-deadline", "pause"],
            definition_pb2.Deadline(after_s=90, then=definition_pb2.ON_DEADLINE_PAUSE),
        ),
    ],
)
async def test_submit_with_a_deadline(node: FakeNode, options: list[str], sent: definition_pb2.Deadline | None) -> None:
    accept(node)
    assert (await run(node, "saga", "submit", "trip.yaml", *options)).exit_code == 0
    [(_, message)] = node.calls
    assert (message.deadline if message.HasField("deadline") else None) == sent


@pytest.mark.parametrize("source", ["secctl_trips:trip", "secctl_trips:build", "trip.json"])
async def test_submit_from_elsewhere(node: FakeNode, folder: Path, source: str) -> None:
    (folder / "trip.json").write_text('{"name": "trip", "nodes": [{"name": "hotel", "action": "book_hotel"}]}')
    (folder / "params.json").write_text("[1, 2]")
    accept(node)
    result = await run(node, "saga", "submit", source, "--params", "@params.json", "-o", "json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer == {
        "saga_id": node.calls[0][1].saga_id,
        "created": True,
        "warnings": ['No action server offers "book_hotel" now.'],
    }
    assert node.calls[0][1].params.data == b"[1,2]"


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (coordinator_pb2.SAGA_STATE_DONE, 0),
        (coordinator_pb2.SAGA_STATE_UNDONE, 1),
        (coordinator_pb2.SAGA_STATE_STUCK, 4),
    ],
)
async def test_submit_and_wait_ends_as_the_saga_did(node: FakeNode, state: int, code: int) -> None:
    accept(node)
    node.answers["WaitSaga"] = lambda _: waited(state)
    result = await run(node, "saga", "submit", "trip.yaml", "--id", "s1", "--wait")
    assert result.exit_code == code
    assert result.stdout.splitlines()[0] == "s1"
    assert result.stdout.splitlines()[1].startswith('saga "s1": ')


BAD: list[tuple[list[str], str]] = [
    (["nothing"], '"nothing" is neither a file nor MODULE:OBJECT'),
    (["none.yaml"], '"none.yaml" cannot be read: No such file or directory.'),
    (["."], '"." cannot be read: Is a directory.'),
    (["broken.yaml"], '"broken.yaml" is not YAML: '),
    (["broken.json"], '"broken.json" is not JSON: Expecting value in line 1, column 10.'),
    (["binary.yaml"], '"binary.yaml" is not a text file in UTF-8.'),
    (["control.yaml"], '"control.yaml" cannot be read: '),
    (["list.yaml"], '"list.yaml" is not a valid saga: The document must be a mapping'),
    (["problems.yaml"], '"problems.yaml" is not a valid saga; it has 2 problems:\n  - '),
    (["date.yaml"], '"date.yaml" is not a valid saga: '),
    (["deep.json"], '"deep.json" is nested too deep.'),
    (["no_such_module:x"], 'There is no module "no_such_module"'),
    (["secctl_trips:none"], 'The module "secctl_trips" has no "none".'),
    (["secctl_trips:bad"], '"secctl_trips:bad" is not a valid saga: Node "hotel" reads the output of "car"'),
    (["secctl_trips:number"], '"secctl_trips:number" is of type int; it must be a Saga'),
    (["secctl_trips:fall"], "\"secctl_trips:fall\" cannot be called: KeyError: 'x'"),
    (["trip.yaml", "--params", "{"], "What is in --params is not JSON"),
    (["trip.yaml", "--params", "NaN"], "What is in --params is not JSON"),
    (["trip.yaml", "--params", "@none"], '"none" cannot be read: No such file or directory.'),
    (["trip.yaml", "--label", "x"], '"x" is not a label: write key=value.'),
    (["trip.yaml", "--label", "x=1", "--label", "x=2"], 'The label "x" is given twice.'),
    (
        ["trip.yaml", "--deadline", "soon"],
        '"soon" is not a time above 0: write a number with its unit, as in 90s, 10m, 1.5h or 2d.',
    ),
    (["trip.yaml", "--deadline", "0m"], '"0m" is not a time above 0'),
    (["trip.yaml", "--on-deadline", "pause"], "--on-deadline says what happens at a --deadline: give that too."),
    (["trip.yaml", "--wait", "--start-later"], "--wait and --start-later exclude each other"),
    (["trip.yaml", "--sec", "nowhere"], '"nowhere" is not an address: give it as host:port.'),
]


@pytest.mark.parametrize(("arguments", "text"), BAD, ids=[" ".join(a) for a, _ in BAD])
async def test_bad_input_is_a_sentence(folder: Path, arguments: list[str], text: str) -> None:
    (folder / "broken.yaml").write_text("name: [")
    (folder / "broken.json").write_text('{"name": ')
    (folder / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (folder / "control.yaml").write_text("name: \x07")
    (folder / "list.yaml").write_text("[1]")
    (folder / "problems.yaml").write_text("{nodes: [{name: a}], colour: red, name: x}")
    (folder / "date.yaml").write_text("name: x\nnodes: [{name: a, constant: 2026-01-01}]")
    (folder / "deep.json").write_text("[" * 100_000)
    result = await run(None, "saga", "submit", *arguments)
    assert result.exit_code == 2
    assert text in result.stderr
    assert "Traceback" not in result.output


async def test_get_prints_the_tree_or_json(node: FakeNode) -> None:
    node.answers["GetSaga"] = lambda _: coordinator_pb2.GetSagaResponse(saga=saga())
    result = await run(node, "saga", "get", "s1")
    assert result.stdout == 'saga "s1" (trip): running\n└─ working: Hotel, produces "hotel"\n'
    shape = json.loads((await run(node, "-o", "json", "saga", "get", "s1")).stdout)
    assert (shape["state"], shape["params"], shape["nodes"][0]["state"]) == ("running", {"json": 1}, "working")


async def test_list_filters_and_limits(node: FakeNode) -> None:
    rows = [coordinator_pb2.SagaSummary(saga_id=f"s{n}", name="trip", state=coordinator_pb2.SAGA_STATE_STUCK) for n in range(3)]
    node.answers["ListSagas"] = lambda _: coordinator_pb2.ListSagasResponse(sagas=rows)
    result = await run(
        node, "saga", "list", "--state", "stuck", "--name", "trip", "--label", "a=b", "--owner", "sec-1", "--limit", "2"
    )
    assert [line.split()[:2] for line in result.stdout.splitlines()] == [["STATE", "SAGA"], ["stuck", "s0"], ["stuck", "s1"]]
    assert "There are more than 2" in result.stderr
    message = node.calls[0][1]
    assert (list(message.states), message.name, dict(message.labels), message.owner, message.page_size) == (
        [coordinator_pb2.SAGA_STATE_STUCK],
        "trip",
        {"a": "b"},
        "sec-1",
        3,
    )
    shape = json.loads((await run(node, "saga", "list", "--output", "json")).stdout)
    assert [s["saga_id"] for s in shape["sagas"]] == ["s0", "s1", "s2"]
    assert shape["truncated"] is False


def sequenced(sequence: int) -> coordinator_pb2.SequencedRecord:
    record = records_pb2.Record(started=records_pb2.Started(node="hotel"))
    return coordinator_pb2.SequencedRecord(sequence=sequence, epoch=4, writer="sec-1", record=record)


async def test_log_watch_and_follow(node: FakeNode) -> None:
    async def stream(message: Any) -> AsyncIterator[Any]:
        for n in (1, 2):
            if n >= message.from_sequence:
                state = coordinator_pb2.SAGA_STATE_RUNNING if n == 1 else coordinator_pb2.SAGA_STATE_UNDONE
                yield coordinator_pb2.WatchSagaResponse(record=sequenced(n), state=state)

    node.answers["GetSagaLog"] = lambda _: coordinator_pb2.GetSagaLogResponse(records=[sequenced(1), sequenced(2)])
    node.answers["WatchSaga"] = stream
    lines = [f"    {n}  -  epoch 4  sec-1  started hotel" for n in (1, 2)]
    assert (await run(node, "saga", "log", "s1")).stdout.splitlines() == lines
    assert (await run(node, "saga", "log", "s1", "--follow", "--from", "2")).stdout.splitlines() == lines[1:]
    watched = await run(node, "saga", "watch", "s1")
    assert (watched.exit_code, watched.stdout.splitlines()) == (1, lines)
    shapes = (await run(node, "saga", "watch", "s1", "-o", "json")).stdout.splitlines()
    assert [json.loads(line)["saga_state"] for line in shapes] == ["running", "undone"]
    assert len(json.loads((await run(node, "saga", "log", "s1", "-o", "json")).stdout)["records"]) == 2


async def test_commands_and_instants_in_json(node: FakeNode) -> None:
    c, r = commands_pb2, records_pb2
    send = c.Command(signal=c.Signal(node="a", data=common_pb2.Payload(data=b'{"b":1}')))
    given = [
        r.Record(commanded=r.Commanded(command_id="c1", command=send)),
        r.Record(started=r.Started(node="a", due_us=1_500_000)),
    ]
    records = [coordinator_pb2.SequencedRecord(sequence=n, record=record) for n, record in enumerate(given, 1)]
    node.answers["GetSagaLog"] = lambda _: coordinator_pb2.GetSagaLogResponse(records=records)
    shape = json.loads((await run(node, "saga", "log", "s1", "-o", "json")).stdout)
    assert [record["fields"] for record in shape["records"]] == [
        {"command_id": "c1", "command": {"signal": {"node": "a", "data": {"json": {"b": 1}}}}},
        {"due": "1970-01-01T00:00:01.500000Z"},
    ]


def takes_commands(node: FakeNode, state: int = coordinator_pb2.SAGA_STATE_RUNNING) -> None:
    """The saga takes up every command, unless it has not been started."""

    async def stream(_: Any) -> AsyncIterator[Any]:
        for sequence, message in enumerate([m for name, m in node.calls if name == "CommandSaga"], 1):
            commanded = records_pb2.Commanded(command_id=message.command_id, command=message.command)
            record = coordinator_pb2.SequencedRecord(sequence=sequence, record=records_pb2.Record(commanded=commanded))
            yield coordinator_pb2.WatchSagaResponse(record=record, state=coordinator_pb2.SAGA_STATE_RUNNING)

    node.answers["CommandSaga"] = lambda _: coordinator_pb2.CommandSagaResponse()
    node.answers["GetSaga"] = lambda _: coordinator_pb2.GetSagaResponse(saga=saga(state))
    node.answers["WatchSaga"] = stream


async def ordered(node: FakeNode, *arguments: str, stdin: str = "") -> commands_pb2.Command:
    """The one command that the program gives."""
    node.calls.clear()
    result = await run(node, "saga", *arguments, stdin=stdin)
    assert (result.exit_code, result.stdout) == (0, 'Saga "s1" has taken it up.\n'), result.output
    [message] = [m for name, m in node.calls if name == "CommandSaga"]
    assert (message.saga_id, bool(message.by)) == ("s1", True)
    assert isinstance(message.command, commands_pb2.Command)
    return message.command


async def test_signal(node: FakeNode, folder: Path) -> None:
    takes_commands(node)
    (folder / "data.json").write_text("[2]")
    for options, stdin, data in (
        ([], "", b"null"),
        (["--data", '{"by": "Ada"}'], "", b'{"by":"Ada"}'),
        (["--data", "-"], "[1]", b"[1]"),
        (["--data", "@data.json"], "", b"[2]"),
    ):
        sent = await ordered(node, "signal", "s1", "--node", "x/approval", *options, stdin=stdin)
        assert sent == commands_pb2.Command(signal=commands_pb2.Signal(node="x/approval", data=payload_of(data)))
    wrong = await run(node, "saga", "signal", "s1", "--node", "a", "--data", "Ada")
    assert wrong.exit_code == 2
    assert "What is in --data is not JSON" in wrong.stderr


def payload_of(data: bytes) -> common_pb2.Payload:
    return common_pb2.Payload(content_type="application/json", data=data)


async def test_deadline(node: FakeNode) -> None:
    takes_commands(node)
    c, fail, pause = commands_pb2, definition_pb2.ON_DEADLINE_FAIL, definition_pb2.ON_DEADLINE_PAUSE
    for options, wanted in (
        (["--after", "10m"], c.SetDeadline(after_s=600, then=fail)),
        (["--after", "2d", "--then", "pause", "--node", "a/b"], c.SetDeadline(node="a/b", after_s=172_800, then=pause)),
        (["--at", "2030-01-01T10:00:00+01:00"], c.SetDeadline(due_us=1_893_488_400_000_000, then=fail)),
        (["--none", "--node", "a"], c.SetDeadline(node="a", then=fail)),
    ):
        assert await ordered(node, "deadline", "s1", *options) == c.Command(set_deadline=wanted)
    for options, text in (
        ([], "Give one of --after, --at and --none."),
        (["--after", "1m", "--none"], "Give one of --after, --at and --none."),
        (["--after", "0"], '"0" is not a time above 0'),
        (["--at", "tomorrow"], '"tomorrow" is not an instant: write it with its time zone, as in 2030-01-01T09:00:00Z.'),
        (["--at", "2030-01-01T09:00:00"], '"2030-01-01T09:00:00" is not an instant'),
        (["--at", "1970-01-01T00:00:00Z"], '"1970-01-01T00:00:00Z" is not an instant'),
    ):
        node.calls.clear()
        wrong = await run(node, "saga", "deadline", "s1", *options)
        assert (wrong.exit_code, node.calls) == (2, [])
        assert text in wrong.stderr


async def test_signals_and_deadlines_for_all_that_match(node: FakeNode) -> None:
    takes_commands(node)
    node.answers["ListSagas"] = lambda _: coordinator_pb2.ListSagasResponse(sagas=[saga().summary])
    for arguments, what in (
        (["signal", "--node", "approval"], "Signal"),
        (["deadline", "--after", "1m"], "SetDeadline"),
    ):
        node.calls.clear()
        declined = await run(node, "saga", *arguments, "--label", "a=b", stdin="n\n")
        assert f"{what} would be given to 1 sagas: s1" in declined.stderr
        assert declined.exit_code == 1
        assert node.count("CommandSaga") == 0
        assert (await run(node, "saga", *arguments, "--label", "a=b", stdin="y\n")).stdout.startswith('Saga "s1"')
        assert node.count("CommandSaga") == 1


async def test_a_saga_that_was_not_started_keeps_its_commands(node: FakeNode) -> None:
    takes_commands(node, coordinator_pb2.SAGA_STATE_CREATED)
    result = await run(node, "saga", "break", "s1", "--node", "hotel")
    assert (result.exit_code, result.stdout) == (0, 'Saga "s1" takes it up when it is started.\n')
    shape = json.loads((await run(node, "-o", "json", "saga", "break", "s1", "--node", "hotel")).stdout)
    assert shape == {"given": [], "kept": ["s1"], "refused": {}}


async def test_the_live_view_ends_with_the_saga(node: FakeNode) -> None:
    states = [coordinator_pb2.SAGA_STATE_DONE, coordinator_pb2.SAGA_STATE_RUNNING]
    node.answers["GetSaga"] = lambda _: coordinator_pb2.GetSagaResponse(saga=saga(states.pop() if len(states) > 1 else states[0]))

    async def stream(message: Any) -> AsyncIterator[Any]:
        yield coordinator_pb2.WatchSagaResponse(record=sequenced(3), state=coordinator_pb2.SAGA_STATE_DONE)

    node.answers["WatchSaga"] = stream
    screen = io.StringIO()
    async with aio.Client(node.address) as client:
        view = await asyncio.wait_for(
            live.follow(client, "s1", Console(file=screen, force_terminal=True, width=80, color_system=None)), DEADLINE_S
        )
    assert view.state == "done"
    assert 'saga "s1" (trip): running' in screen.getvalue()
    assert 'saga "s1" (trip): done' in screen.getvalue()


async def test_wait(node: FakeNode) -> None:
    node.answers["WaitSaga"] = lambda _: waited(coordinator_pb2.SAGA_STATE_DONE, output=common_pb2.Payload(data=b'{"a":1}'))
    assert (await run(node, "saga", "wait", "s1")).stdout == 'saga "s1": done\noutput: {"a":1}\n'
    shape = json.loads((await run(node, "saga", "wait", "s1", "-o", "json")).stdout)
    assert shape == {"saga_id": "s1", "state": "done", "output": {"json": {"a": 1}}, "errors": []}
    node.answers["WaitSaga"] = lambda _: coordinator_pb2.WaitSagaResponse(summary=saga().summary)
    late = await run(node, "saga", "wait", "s1", "--timeout", "0")
    assert late.exit_code == 6
    assert late.stderr.startswith('error: Saga "s1" has not settled within 0 seconds')


async def test_a_cluster_without_room_is_said(node: FakeNode) -> None:
    node.answers["StartSaga"] = lambda _: refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        'The start of saga "s1" was refused: SEC node "sec-1" has 5 active sagas, which is as many as it may.',
        code="overloaded",
        hint="Nothing was done. Ask another SEC node, or this one again after 60 s.",
        retryable=True,
        retry_after_s=60,
    )
    said = await run(node, "saga", "start", "s1")
    assert said.exit_code == 3
    assert said.stderr == (
        'error: The start of saga "s1" was refused: SEC node "sec-1" has 5 active sagas, which is as many as it may.\n'
        "hint: Nothing was done. Ask another SEC node, or this one again after 60 s.\n"
    )


async def test_start_dot_node_and_action(node: FakeNode) -> None:
    node.answers |= {
        "StartSaga": lambda _: coordinator_pb2.StartSagaResponse(),
        "GetSaga": lambda _: coordinator_pb2.GetSagaResponse(saga=saga()),
        "ListNodes": lambda _: coordinator_pb2.ListNodesResponse(
            nodes=[coordinator_pb2.SecNode(name="sec-1", address="a:1")], answered_by="sec-1"
        ),
        "DrainNode": lambda _: coordinator_pb2.DrainNodeResponse(),
        "ListActions": lambda _: coordinator_pb2.ListActionsResponse(),
    }
    assert (await run(node, "saga", "start", "s1")).stdout == "s1\n"
    assert (await run(node, "saga", "dot", "s1")).stdout.startswith('digraph "s1" {\n')
    assert "sec-1 *" in (await run(node, "node", "list")).stdout
    assert json.loads((await run(node, "node", "list", "-o", "json")).stdout)["answered_by"] == "sec-1"
    assert (await run(node, "node", "drain", "sec-1")).stdout == 'SEC node "sec-1" is draining.\n'
    assert (await run(node, "node", "drain", "sec-1", "--undo")).stdout == 'SEC node "sec-1" takes sagas again.\n'
    assert [m.undrain for name, m in node.calls if name == "DrainNode"] == [False, True]
    assert (await run(node, "action", "list")).stdout == "No action server offers any action.\n"
    assert json.loads((await run(node, "action", "list", "-o", "json")).stdout) == {"actions": []}


async def test_errors_of_the_cluster(node: FakeNode) -> None:
    node.answers["GetSaga"] = lambda _: refusal(
        grpc.StatusCode.NOT_FOUND, 'There is no saga "s1".', code="saga_not_found", hint="List them.", definite=True
    )
    result = await run(node, "saga", "get", "s1")
    assert (result.exit_code, result.stdout, result.stderr) == (5, "", 'error: There is no saga "s1".\nhint: List them.\n')
    node.answers["SubmitSaga"] = lambda _: refusal(
        grpc.StatusCode.INVALID_ARGUMENT, "Two problems.", code="invalid_definition", problems=["One.", "Two."]
    )
    result = await run(node, "saga", "submit", "trip.yaml")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[1:] == ["  - One.", "  - Two."]


async def test_a_cluster_that_is_away() -> None:
    result = await asyncio.to_thread(CliRunner().invoke, cli, ["--timeout", "0.2", "--sec", "127.0.0.1:1", "saga", "get", "s1"])
    assert result.exit_code == 3
    assert result.stderr.startswith("error: No SEC node at 127.0.0.1:1 could do the call in time")


def commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name, command in group.commands.items():
        found += commands(command, (*path, name)) if isinstance(command, click.Group) else [(*path, name)]
    return found


@pytest.mark.parametrize("path", commands(cli), ids=" ".join)
def test_every_help_has_a_purpose_and_an_example(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(cli, [*path, "--help"])
    assert result.exit_code == 0
    assert f"secctl {' '.join(path)}" in result.output.split("Example", 1)[1]
    assert "--output" in result.output


def describing(**schemas: Any) -> coordinator_pb2.ListActionsResponse:
    """Two actions are offered, and one of them is described."""
    hotel = coordinator_pb2.OfferedAction(
        name="book_hotel", summary="Books", schemas=[action_server_pb2.ActionSchemas(**each) for each in schemas.values()]
    )
    return coordinator_pb2.ListActionsResponse(actions=[hotel, coordinator_pb2.OfferedAction(name="book_flight")])


async def test_show_what_an_action_takes_and_answers(node: FakeNode) -> None:
    ways = {
        "old": {"params": '{"type": "object"}', "inputs": {"a": "true", "b": '{"type": "null"}'}, "optional_inputs": ["b"]},
        "new": {"output": '{"type": "string"}'},
    }
    node.answers["ListActions"] = lambda m: describing(**ways)
    text = (await run(node, "action", "show", "book_hotel")).output
    assert text.splitlines()[:2] == ['action "book_hotel": Books', "description 1 of 2:"]
    assert 'params: {"type": "object"}' in text
    assert 'optional input "b": {"type": "null"}' in text
    assert text.endswith('params: anything\noutput: {"type": "string"}\n')
    shape = json.loads((await run(node, "action", "show", "book_hotel", "--output", "json")).output)
    assert shape["schemas"][0] == {
        "params": {"type": "object"},
        "inputs": {"a": True, "b": {"type": "null"}},
        "optional_inputs": ["b"],
        "output": None,
    }
    listed = json.loads((await run(node, "action", "list", "--output", "json")).output)
    assert listed["actions"][0] == shape
    silent = await run(node, "action", "show", "book_flight")
    assert "Its servers do not describe what it takes and answers." in silent.output
    missing = await run(node, "action", "show", "book_car")
    assert (missing.exit_code, missing.stderr) == (
        2,
        'error: No action server offers the action "book_car". "secctl action list" shows what is offered.\n',
    )


async def test_check_a_saga_without_submitting_it(node: FakeNode) -> None:
    node.answers["ListActions"] = lambda m: describing(only={"params": '{"type": "object", "required": ["guest"]}'})
    fits = await run(node, "saga", "check", "trip.yaml", "--params", '{"guest": "Ada"}')
    assert (fits.exit_code, fits.output) == (0, '"trip.yaml" is a valid saga.\n')
    wrong = await run(node, "saga", "check", "trip.yaml", "--params", "{}")
    assert (wrong.exit_code, wrong.stderr) == (
        2,
        'error: "trip.yaml" does not fit the actions that it calls: The params of the saga are not what action "book_hotel" of node "hotel" '
        "wants: wrong at $: 'guest' is a required property.\n",
    )
    node.answers["ListActions"] = lambda m: coordinator_pb2.ListActionsResponse()
    unknown = await run(node, "saga", "check", "secctl_trips:trip", "--output", "json")
    assert json.loads(unknown.stdout) == {"name": "trip", "valid": True, "not_offered": ["book_hotel"]}
    assert unknown.stderr == 'warning: No action server offers the action "book_hotel" now, so it could not be checked.\n'
    assert node.count("SubmitSaga") == 0


async def test_delete_some_by_name_and_say_which_could_not_be(node: FakeNode) -> None:
    sentence = 'Saga "s2" has not ended and cannot be deleted.'
    node.answers["DeleteSaga"] = lambda m: (
        refusal(grpc.StatusCode.FAILED_PRECONDITION, sentence, code="wrong_state")
        if m.saga_id == "s2"
        else coordinator_pb2.DeleteSagaResponse()
    )
    result = await run(node, "saga", "delete", "s1", "s2", "s3")
    assert result.stdout == 'Saga "s1" is deleted.\nSaga "s3" is deleted.\n'
    assert result.stderr == f"error: {sentence}\n"
    assert result.exit_code != 0


async def test_delete_by_a_filter_means_those_that_have_ended_and_asks_first(node: FakeNode) -> None:
    node.answers["DeleteSaga"] = lambda m: coordinator_pb2.DeleteSagaResponse()
    node.answers["ListSagas"] = lambda m: coordinator_pb2.ListSagasResponse(sagas=[saga(coordinator_pb2.SAGA_STATE_DONE).summary])
    result = await run(node, "saga", "delete", "--label", "team=x", stdin="n\n")
    assert (result.exit_code, node.count("DeleteSaga")) == (1, 0)
    assert "Deleted, for good, would be 1 sagas: s1" in result.stderr
    assert list(node.calls[0][1].states) == [coordinator_pb2.SAGA_STATE_DONE, coordinator_pb2.SAGA_STATE_UNDONE]
    result = await run(node, "saga", "delete", "--label", "team=x", "--yes")
    assert (result.exit_code, result.stdout) == (0, 'Saga "s1" is deleted.\n')
    assert node.count("DeleteSaga") == 1
