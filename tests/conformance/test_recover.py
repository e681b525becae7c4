"""`secctl saga log --export` and `sec debug recover`: what they print, to the letter. `SEC_WRITE_GOLDEN=1` writes the golden files anew."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from client_support import FakeNode
from google.protobuf.json_format import MessageToDict
from mini_driver import FOREVER, FakeActionServer, MiniDriver
from sec_model import Definition, Payload, Saga, action, compile_graph
from sec_model.codec import definition_bytes, definition_hash, definition_to_proto, payload_to_proto
from sec_protos.v1 import coordinator_pb2 as pb
from secctl.__main__ import cli as secctl
from secctl.export import FORMAT as WRITTEN_FORMAT

from examples.demo_provision.saga import demo_provision
from sec.api.views import sequenced
from sec.cli import main as sec
from sec.core.records import LogEntry
from sec.debug import FORMAT, ExportedLog, read_export, recover, what_next

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
    "unwinding": lambda: demo_log(FakeActionServer(failing={"instance_boot"}))[:-3],
    "just_failed": lambda: demo_log(FakeActionServer(failing={"volume_id"}), steps=3),
    "stuck": lambda: demo_log(FakeActionServer(failing={"instance_boot"}, undo_failing={"instance_id": FOREVER})),
    "undone": lambda: demo_log(FakeActionServer(failing={"instance_boot"})),
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
            'error: What the header says of saga "s" cannot be read: Node "a" is neither',
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
