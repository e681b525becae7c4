"""`secctl saga log --export` and `sec debug recover`: what they print, to the letter. `SEC_WRITE_GOLDEN=1` writes the golden files anew."""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from client_support import FakeNode
from google.protobuf.json_format import MessageToDict
from mini_driver import MiniDriver
from sec_model import Deadline, Definition, OnDeadline, Payload, Saga, UndoPolicy, action, compile_graph, signal, timer
from sec_model.codec import definition_bytes, definition_hash, definition_to_proto, payload_to_proto
from sec_model.commands import NodePath, Signal
from sec_protos.v1 import coordinator_pb2 as pb
from secctl.__main__ import cli as secctl
from secctl.export import FORMAT as WRITTEN_FORMAT

from examples.demo_provision.saga import demo_provision
from sec.api.views import sequenced
from sec.cli import main as sec
from sec.core.records import (
    AttemptFailed,
    Commanded,
    Created,
    Epoch,
    Fault,
    LogEntry,
    Record,
    SecNodeName,
    Started,
    StartRequested,
    Succeeded,
)
from sec.debug import FORMAT, ExportedLog, read_export, recover, report, what_next
from sec.sim.effects import FOREVER, FakeActionServer

ROOT = Path(__file__).resolve().parent.parent.parent
GOLDEN = Path(__file__).with_name("golden")
YAML = str(ROOT / "examples" / "demo_provision" / "saga.yaml")
PAGE = 7


DIGEST = definition_hash(definition_bytes(demo_provision().build()))


def golden(name: str, text: str) -> None:
    """The text is that of the golden file, where a word stands for the hash of the definition."""
    path = GOLDEN / name
    text = text.replace(DIGEST, "DEFINITION_HASH")
    if os.environ.get("SEC_WRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def golden_log(case: str) -> ExportedLog:
    return read_export((GOLDEN / f"{case}.jsonl").read_text(encoding="utf-8").replace("DEFINITION_HASH", DIGEST))


def demo_log(server: FakeActionServer, *, steps: int = 1000) -> list[LogEntry]:
    """The log of the demo saga after so many answered calls."""
    driver = MiniDriver(compile_graph(demo_provision().build()), server)
    driver.submit()
    while driver.calls and steps:
        driver.handle(driver.answer(next(iter(driver.calls))))
        steps -= 1
    return driver.log


def retried() -> list[LogEntry]:
    """The demo saga, taken over while two calls are in flight, one of them for the second time."""
    driver = MiniDriver(compile_graph(demo_provision().build()), FakeActionServer())
    driver.submit()
    driver.handle(driver.answer(0))
    driver.handle(driver.lose(driver.graph.index_of("volume_id")))
    driver.recover()
    driver.handle(driver.answer(driver.graph.index_of("instance_ip")))
    return driver.log


CASES: dict[str, Callable[[], list[LogEntry]]] = {
    "done": lambda: demo_log(FakeActionServer()),
    "created": lambda: demo_log(FakeActionServer())[:1],
    "in_flight": retried,
    "unwinding": lambda: demo_log(FakeActionServer(failing={"instance_boot": FOREVER}))[:-3],
    "just_failed": lambda: demo_log(FakeActionServer(failing={"volume_id": FOREVER}), steps=3),
    "stuck": lambda: demo_log(FakeActionServer(failing={"instance_boot": FOREVER}, undo_failing={"instance_id": FOREVER})),
    "undone": lambda: demo_log(FakeActionServer(failing={"instance_boot": FOREVER})),
    "gap": lambda: [e for e in demo_log(FakeActionServer()) if e.sequence != 9],
    "child_before_parent": lambda: _swapped(demo_log(FakeActionServer())),
}
BROKEN = {"gap", "child_before_parent"}


def _swapped(log: list[LogEntry]) -> list[LogEntry]:
    """Records 3 and 5 change places."""
    by_sequence = {e.sequence: e for e in log}
    swapped = {3: by_sequence[5].record, 5: by_sequence[3].record}
    return [LogEntry(e.sequence, e.epoch, e.writer, e.time_us, swapped.get(e.sequence, e.record)) for e in log]


def header(definition: Definition, /, **more: object) -> str:
    digest = definition_hash(definition_bytes(definition))
    return json.dumps({"saga_log": 1, "saga_id": "s", "name": definition.name, "definition_hash": digest, **more})


async def export(node: FakeNode, log: list[LogEntry], *arguments: str, **view: object) -> Result:
    """What `secctl saga log` does at a cluster that has this log."""
    definition = demo_provision().build()
    saga = pb.Saga(
        summary=pb.SagaSummary(saga_id="demo", name=definition.name, labels={"team": "storage", "app": "x"}),
        uid="uid",
        definition_hash=DIGEST,
        params=payload_to_proto(Payload.json({"delay_s": 0})),
    )
    saga.MergeFrom(pb.Saga(**view))  # type: ignore[arg-type] # fields of the message

    def page(message: pb.GetSagaLogRequest) -> pb.GetSagaLogResponse:
        rest = [e for e in log if e.sequence >= message.from_sequence]
        following = rest[PAGE].sequence if len(rest) > PAGE else 0
        return pb.GetSagaLogResponse(records=[sequenced(e) for e in rest[:PAGE]], next_sequence=following)

    node.answers |= {"GetSaga": lambda _: pb.GetSagaResponse(saga=saga), "GetSagaLog": page}
    given = ["--sec", node.address, "saga", "log", "demo", *arguments]
    return await asyncio.to_thread(CliRunner().invoke, secctl, given)


@pytest.fixture
async def node() -> AsyncIterator[FakeNode]:
    fake = FakeNode()
    await fake.start()
    yield fake
    await fake.die()


@pytest.mark.parametrize("case", CASES)
async def test_an_exported_log_is_recovered(node: FakeNode, tmp_path: Path, case: str) -> None:
    log, file = CASES[case](), tmp_path / "log.jsonl"
    exported = await export(node, log, "--export", str(file))
    assert (exported.exit_code, exported.stdout) == (0, f"{len(log)} records were written to {file}.\n"), exported.output
    golden(f"{case}.jsonl", file.read_text())
    result = CliRunner().invoke(sec, ["debug", "recover", str(file), "--definition", YAML])
    assert result.exit_code == (1 if case in BROKEN else 0), result.output
    golden(f"{case}.txt", result.stdout)


def test_nothing_is_lost_on_the_way_through_a_file() -> None:
    for case, make in CASES.items():
        assert list(golden_log(case).entries) == make()


def test_writer_and_reader_agree_on_the_format() -> None:
    assert WRITTEN_FORMAT == FORMAT


async def test_export_to_stdout_and_as_json(node: FakeNode, tmp_path: Path) -> None:
    log = CASES["in_flight"]()
    assert (await export(node, log, "--export", "-")).stdout.replace(DIGEST, "DEFINITION_HASH") == (
        GOLDEN / "in_flight.jsonl"
    ).read_text()
    told = await export(node, log, "--export", str(tmp_path / "x"), "-o", "json")
    assert json.loads(told.stdout) == {"saga_id": "demo", "file": str(tmp_path / "x"), "records": len(log)}


async def test_export_of_a_corrupt_log_says_so(node: FakeNode) -> None:
    summary = pb.SagaSummary(state=pb.SAGA_STATE_CORRUPT)
    summary.error.error.message = "The records from 4 on are damaged."
    result = await export(node, CASES["done"]()[:3], "--export", "-", summary=summary)
    assert json.loads(result.stdout.splitlines()[0])["corrupt"] == "The records from 4 on are damaged."
    recovered = CliRunner().invoke(sec, ["debug", "recover", "-", "--definition", YAML], input=result.stdout)
    assert "the cluster says: The records from 4 on are damaged.\n" in recovered.stdout


def test_a_file_of_a_damaged_log_ends_where_the_log_does() -> None:
    """SEC nodes leave such a saga alone, although what can be read of it makes sense."""
    problem = 'Saga "demo" cannot be read. The records from 4 on are damaged.'
    lines = (GOLDEN / "in_flight.jsonl").read_text().replace("DEFINITION_HASH", DIGEST).splitlines()[:4]
    text = "\n".join([*lines, json.dumps({"problem": problem}), "what stands behind it is not read"])
    recovered = CliRunner().invoke(sec, ["debug", "recover", "-", "--definition", YAML], input=text)
    assert recovered.exit_code == 1
    assert f"the log stops making sense behind record 3: {problem}\n" in recovered.stdout
    assert "what would happen next" not in recovered.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--export", "x", "--follow"], "leave out --follow and --from"),
        (["--export", "x", "--from", "3"], "leave out --follow and --from"),
        (["--export", "/nowhere/x"], 'error: "/nowhere/x" cannot be written: No such file or directory.\n'),
    ],
)
async def test_export_that_cannot_be(node: FakeNode, arguments: list[str], sentence: str) -> None:
    result = await export(node, [], *arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr


ONE = Saga("one").append(action("a", "step")).build()
OTHER = Saga("one").append(action("b", "step")).build()
CREATED = '{"sequence":"1","epoch":"3","writer":"sec-1","record":{"created":{"uid":"u","definition_hash":"h"}}}'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", 'error: The file does not begin with the header of a saga log: write it with "secctl saga log ID --export FILE".'),
        (CREATED, "error: The file does not begin with the header of a saga log"),
        ('{"saga_log": 2}', "error: The file is of format 2, but this version reads format 1: use the one that wrote it."),
        (header(ONE, params=5), 'error: What the header says of saga "s" cannot be read: '),
        (
            header(ONE, definition={"nodes": [{"name": "a"}]}),
            'error: What the header says of saga "s" cannot be read: Node "a" is of no kind',
        ),
        (
            header(ONE),
            'error: The file does not have the definition of saga "s": give the file that it was submitted from, with --definition.',
        ),
    ],
)
def test_a_file_that_cannot_be_used(text: str, sentence: str) -> None:
    result = CliRunner().invoke(sec, ["debug", "recover", "-"], input=text)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(sentence)


def test_another_definition_than_it_was_made_from() -> None:
    result = CliRunner().invoke(sec, ["debug", "recover", "-", "--definition", YAML], input=header(OTHER))
    assert result.exit_code == 2
    assert result.stderr.startswith('error: Saga "s" was made from the definition ')


def test_a_file_may_bring_its_definition() -> None:
    brought = header(ONE, definition=MessageToDict(definition_to_proto(ONE)))
    result = CliRunner().invoke(sec, ["debug", "recover", "-"], input=f"{brought}\n{CREATED}\n")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[:2] == ['saga "s" (one): created', '└─ queued: step, produces "a"']


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"sequence":"2","epoch":"3","writer":"sec-1","record":{"rewound":{}}}',
        '{"sequence":"2","epoch":"3","writer":"sec-1","record":{}}',
    ],
)
def test_a_line_that_cannot_be_read_ends_what_makes_sense(line: str) -> None:
    recovered = recover(read_export(f"{header(ONE)}\n{CREATED}\n{line}\n"), ONE)
    assert recovered.problem.startswith("line 3 of the file is not a record that this version can read: ")
    assert len(recovered.folded) == 1


ORDER = (
    Saga("order")
    .append_parallel(signal("approval", deadline=Deadline(60, OnDeadline.PAUSE)), timer("cool_off", 30), action("look", "step"))
    .append(action("pay", "step", undo=UndoPolicy.POINT_OF_NO_RETURN))
    .append(action("ship", "step", deadline=Deadline(90, OnDeadline.PAUSE)))
    .build()
)
SECOND = 1_000_000
AT_NOON_US = 1_893_499_200 * SECOND


def order(*records: Record, after_s: int = 0) -> list[str]:
    """What is said of the order with these records in its log, the last of them so long after noon."""
    first = (
        Created("u", "", Deadline(120)),
        StartRequested(AT_NOON_US + 120 * SECOND),
    )
    all_of_them = [*first, *records]
    times_us = [AT_NOON_US] * (len(all_of_them) - 1) + [AT_NOON_US + after_s * SECOND]
    log = [
        LogEntry(n, Epoch(1), SecNodeName("sec-1"), time_us, record)
        for n, (record, time_us) in enumerate(zip(all_of_them, times_us, strict=True), 1)
    ]
    lines = [json.dumps(MessageToDict(sequenced(entry), preserving_proto_field_name=True)) for entry in log]
    return report(recover(read_export("\n".join([header(ORDER), *lines])), ORDER)).splitlines()


def at(name: str) -> NodePath:
    return NodePath(name)


def test_a_saga_that_waits_says_for_what() -> None:
    said = order(
        Started(at("approval"), AT_NOON_US + 60 * SECOND),
        Started(at("cool_off"), AT_NOON_US + 30 * SECOND),
        Started(at("look")),
        Succeeded(at("look"), Payload.json(1)),
        after_s=10,
    )
    assert said[:5] == [
        'saga "s" (order): running, due 2030-01-01 12:02:00.000Z, owned by sec-1',
        "├─ in parallel",
        '│  ├─ waiting: approval, produces "approval", due 2030-01-01 12:01:00.000Z (Waits for its signal ("secctl saga signal").)',
        '│  ├─ waiting: cool_off, produces "cool_off", due 2030-01-01 12:00:30.000Z (Waits for its time.)',
        '│  └─ done: step, produces "look"',
    ]
    assert said[said.index("  and then waits: nothing is dispatched") :] == [
        "  and then waits: nothing is dispatched",
        "  and it waits for",
        '    the signal of node "approval"',
        '    the time of node "cool_off", 2030-01-01 12:00:30.000Z',
        '    the deadline of node "approval", 2030-01-01 12:01:00.000Z: then the saga is paused',
        "    the deadline of the saga, 2030-01-01 12:02:00.000Z: then the saga unwinds",
    ]


def test_what_the_clock_brings_is_as_of_the_last_record() -> None:
    waits = Started(at("approval"), AT_NOON_US + 60 * SECOND), Started(at("cool_off"), AT_NOON_US + 30 * SECOND)
    said = order(*waits, Started(at("look")), Succeeded(at("look"), Payload.json(1)), after_s=70)
    assert "    succeeded cool_off output=null" in [re.sub("[0-9]+ .* next-owner  ", "", line) for line in said]
    assert "    deadline_passed approval" in [re.sub("[0-9]+ .* next-owner  ", "", line) for line in said]
    assert said[-3:] == [
        "  and it waits for",
        '    the signal of node "approval"',
        "    the deadline of the saga, 2030-01-01 12:02:00.000Z: then the saga unwinds",
    ]


def test_a_saga_behind_its_point_of_no_return_is_told_so() -> None:
    send = Commanded("c1", "me", Signal(at("approval"), Payload.json("yes")))
    said = order(
        Started(at("approval"), AT_NOON_US + 60 * SECOND),
        Started(at("cool_off"), AT_NOON_US + 30 * SECOND),
        Started(at("look")),
        Succeeded(at("look"), Payload.json(1)),
        Succeeded(at("cool_off"), Payload.json(None)),
        send,
        Succeeded(at("approval"), Payload.json("yes")),
        Started(at("pay")),
        Succeeded(at("pay"), Payload.json(2)),
        Started(at("ship"), AT_NOON_US + 150 * SECOND),
        AttemptFailed(at("ship"), 1, Fault("No truck."), 0.5),
        after_s=61,
    )
    [ship] = [line for line in said if 'produces "ship"' in line]
    assert ship == (
        '└─ retrying: step, produces "ship", 1 call without success: No truck., due 2030-01-01 12:02:30.000Z (Call 2 comes next or is under way; '
        "the saga only goes forward from here, so that it is tried for ever.)"
    )
    assert said[-3:] == [
        "  and it waits for",
        "    the deadline of the saga, 2030-01-01 12:02:00.000Z: then the saga unwinds, unless it is past its point of no return, as it is now",
        '    the deadline of node "ship", 2030-01-01 12:02:30.000Z: then the saga is paused',
    ]
    assert '    dispatch the do of node "ship" (action "step"): attempt 2, for at most 30 s' in said


def test_what_next_is_what_a_takeover_does() -> None:
    log = golden_log("unwinding")
    recovered = recover(log, demo_provision().build())
    driver = MiniDriver(compile_graph(demo_provision().build()), FakeActionServer(), log.entries)
    driver.recover()
    ready = what_next(recovered.state)
    assert ready is not None
    assert {e.node for e in ready.effects} == set(driver.calls)
    assert [type(r) for r in ready.records] == [type(e.record) for e in driver.log[len(log.entries) :]]
    for ended in ("done", "undone", "created"):
        assert what_next(recover(golden_log(ended), demo_provision().build()).state) is None
