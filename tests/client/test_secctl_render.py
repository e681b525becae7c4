"""What people see, letter by letter."""

from dataclasses import replace
from datetime import UTC, datetime

from sec_client import (
    ActionServerView,
    LogRecord,
    NodeCondition,
    NodeError,
    NodeList,
    NodeState,
    NodeView,
    OfferedAction,
    Payload,
    Phase,
    SagaResult,
    SagaState,
    SagaSummary,
    SagaView,
    SecNode,
)
from secctl import render
from secctl.dot import COLOURS, dot
from secctl.errors import exit_code_of_state

NOON = datetime(2026, 3, 1, 12, 0, 0, 123_456, tzinfo=UTC)


def node(path: str, state: NodeState, rank: int, *depends_on: str, label: str = "", subsaga: bool = False) -> NodeView:
    return NodeView(path, label or path.title(), state, depends_on, action="" if subsaga else "act", rank=rank, subsaga=subsaga)


def demo(state: SagaState = SagaState.RUNNING) -> SagaView:
    return SagaView(
        SagaSummary("s1", "demo-provision", state, owner="sec-2"),
        nodes=(
            node("instance_id", NodeState.DONE, 0, label="InstanceCreate"),
            node("alloc_params", NodeState.DONE, 1, "instance_id"),
            node("instance_ip", NodeState.WORKING, 2, "alloc_params"),
            replace(node("volume_id", NodeState.RETRYING, 2, "alloc_params"), attempts=2),
            node("server_alloc", NodeState.WORKING, 2, "alloc_params", subsaga=True),
            node("server_alloc/server_id", NodeState.DONE, 0),
            replace(
                node("server_alloc/server_reserve", NodeState.QUEUED, 1, "server_alloc/server_id"),
                detail='no action server offers "reserve" now',
            ),
            node("boot", NodeState.BLOCKED, 3, "instance_ip", "volume_id", "server_alloc"),
        ),
    )


RUNNING = """\
saga "s1" (demo-provision): running, owned by sec-2
├─ done: InstanceCreate, produces "instance_id"
├─ done: Alloc_Params, produces "alloc_params"
├─ in parallel
│  ├─ working: Instance_Ip, produces "instance_ip"
│  ├─ retrying: Volume_Id, produces "volume_id", 2 calls without success
│  └─ working: subsaga Server_Alloc, produces "server_alloc"
│     ├─ done: Server_Alloc/Server_Id, produces "server_alloc/server_id"
│     └─ queued: Server_Alloc/Server_Reserve, produces "server_alloc/server_reserve" (no action server offers "reserve" now)
└─ blocked: Boot, produces "boot"
"""


def test_tree_of_a_running_saga() -> None:
    assert render.tree(demo()).plain == RUNNING


def test_tree_of_a_saga_that_waits() -> None:
    waiting = SagaView(
        SagaSummary("s1", "order", SagaState.RUNNING, owner="sec-2"),
        nodes=(
            replace(node("approval", NodeState.WAITING, 0), due=NOON, detail="Waits for its signal."),
            replace(node("cool_off", NodeState.WAITING, 0), detail="Waits for its time."),
        ),
        due=NOON,
    )
    assert (
        render.tree(waiting).plain
        == """\
saga "s1" (order): running, due 2026-03-01 12:00:00.123Z, owned by sec-2
└─ in parallel
   ├─ waiting: Approval, produces "approval", due 2026-03-01 12:00:00.123Z (Waits for its signal.)
   └─ waiting: Cool_Off, produces "cool_off" (Waits for its time.)
"""
    )


def test_tree_of_a_stuck_saga_names_every_error() -> None:
    stuck = SagaView(
        SagaSummary("s1", "trip", SagaState.STUCK),
        nodes=(
            node("a", NodeState.UNDO_FAILED, 0),
            node("b", NodeState.UNDONE, 1, "a"),
            node("c", NodeState.FAILED, 2, "b"),
            node("d", NodeState.ABANDONED, 3, "c"),
        ),
        errors=(
            NodeError("c", Phase.DO, "There is\nno room.\x1b[31m", "no_capacity", None, NOON),
            NodeError("a", Phase.UNDO, "It burnt down."),
        ),
    )
    assert render.tree(stuck).plain == (
        """\
saga "s1" (trip): stuck
├─ undo-failed: A, produces "a"
├─ undone: B, produces "b"
├─ failed: C, produces "c"
└─ abandoned: D, produces "d"
errors:
  node "c": There is no room.\N{REPLACEMENT CHARACTER}[31m [no_capacity]
  undo of node "a": It burnt down.
"""
    )


def test_tree_of_a_saga_that_is_done_shows_its_output() -> None:
    done = SagaView(
        SagaSummary("s1", "trip", SagaState.DONE), nodes=(node("a", NodeState.DONE, 0),), output_payload=Payload.json({"ok": True})
    )
    assert render.tree(done).plain.splitlines()[-1] == 'output: {"ok":true}'


def test_every_state_has_its_own_look() -> None:
    assert set(render.NODE_STYLES) == set(COLOURS) == set(NodeState)
    assert set(render.SAGA_STYLES) == set(SagaState)
    assert render.NODE_STYLES[NodeState.FAILED] != render.NODE_STYLES[NodeState.UNDONE]


def test_list_shows_stuck_sagas_first() -> None:
    found = [
        SagaSummary("s1", "trip", SagaState.RUNNING, {"b": "2", "a": "1"}, "sec-1", NOON),
        SagaSummary("s2", "trip", SagaState.STUCK, {}, "", NOON, None, NodeError("a", Phase.UNDO, "Burnt.")),
        SagaSummary("s3", "trip", SagaState.RUNNING, paused=True, pause_reason="The saga did not\nend by its deadline."),
    ]
    assert (
        render.sagas(found).plain
        == """\
STATE            SAGA  NAME  OWNER  CREATED                   LABELS   WHY
stuck            s2    trip  -      2026-03-01 12:00:00.123Z  -        undo of node "a": Burnt.
running          s1    trip  sec-1  2026-03-01 12:00:00.123Z  a=1,b=2
running, paused  s3    trip  -      -                         -        The saga did not end by its deadline.
"""
    )
    assert render.sagas([]).plain == "There are no such sagas.\n"


def test_log_lines() -> None:
    records = [
        LogRecord(1, 0, "sec-1", NOON, "created", fields={"uid": "u", "definition_hash": "ab"}),
        LogRecord(2, 7, "sec-1", NOON, "started", "a/b"),
        LogRecord(3, 7, "sec-1", NOON, "succeeded", "a/b", fields={"output": Payload.json([1])}),
        LogRecord(14, 9, "sec-2", None, "failed", "c", NodeError("c", Phase.DO, "No room.", "no_capacity")),
        LogRecord(15, 9, "sec-2", NOON, "undo_skipped", "c", fields={"reason": "by hand"}),
        LogRecord(16, 9, "sec-2", NOON, "succeeded", "d", fields={"output": Payload("image/png", b"1234")}),
        LogRecord(17, 9, "sec-2", None, "created", fields={"deadline": {"after_s": 2.5, "then": "pause"}}),
        LogRecord(18, 9, "sec-2", None, "started", "d", fields={"due": NOON}),
        LogRecord(19, 9, "sec-2", None, "attempt_failed", "d", NodeError("d", Phase.DO, "No room."), {"attempt": 2}),
        LogRecord(20, 9, "sec-2", None, "deadline_passed", "d"),
        LogRecord(
            21,
            9,
            "sec-2",
            None,
            "commanded",
            fields={"by": "me", "command": {"signal": {"node": "d", "data": Payload.json({"a": 1})}}},
        ),
        LogRecord(22, 9, "sec-2", None, "commanded", fields={"command": {"resume": {}}, "refused": "No."}),
    ]
    assert [render.record(r).plain for r in records] == [
        "    1  2026-03-01 12:00:00.123Z  epoch 0  sec-1  created uid=u definition_hash=ab",
        "    2  2026-03-01 12:00:00.123Z  epoch 7  sec-1  started a/b",
        "    3  2026-03-01 12:00:00.123Z  epoch 7  sec-1  succeeded a/b output=[1]",
        "   14  -  epoch 9  sec-2  failed c: No room. [no_capacity]",
        "   15  2026-03-01 12:00:00.123Z  epoch 9  sec-2  undo_skipped c reason=by hand",
        "   16  2026-03-01 12:00:00.123Z  epoch 9  sec-2  succeeded d output=4 bytes of image/png",
        "   17  -  epoch 9  sec-2  created deadline=(after_s=2.5, then=pause)",
        "   18  -  epoch 9  sec-2  started d due=2026-03-01 12:00:00.123Z",
        "   19  -  epoch 9  sec-2  attempt_failed d: No room. attempt=2",
        "   20  -  epoch 9  sec-2  deadline_passed d",
        '   21  -  epoch 9  sec-2  commanded by=me command=signal(node=d, data={"a":1})',
        "   22  -  epoch 9  sec-2  commanded command=resume() refused=No.",
    ]


def test_nodes_and_actions() -> None:
    nodes = NodeList((SecNode("sec-1", "a:1", "0.1.0", True, True, 3, NOON), SecNode("sec-2", "b:1")), "sec-2")
    assert (
        render.nodes(nodes).plain
        == """\
NODE     ADDRESS  ROLE              SAGAS  VERSION  STARTED
sec-1    a:1      leader, draining  3      0.1.0    2026-03-01 12:00:00.123Z
sec-2 *  b:1      -                 0      -        -
"""
    )
    troubled = NodeList(
        (
            SecNode("sec-1", "a:1", trouble="It is full.", condition=NodeCondition.OVERLOADED),
            SecNode("sec-2", "b:1", trouble="The store is away.", condition=NodeCondition.STORE_UNREACHABLE),
        ),
        "sec-1",
    )
    assert render.nodes(troubled).plain.splitlines()[-2:] == [
        "sec-1 is not well (overloaded): It is full.",
        "sec-2 does not serve (store unreachable): The store is away.",
    ]
    actions = [
        OfferedAction(
            "take", "Takes one", (ActionServerView("i1", "inv", "c:1", True), ActionServerView("i2", "", "d:1", False, True))
        )
    ]
    assert (
        render.actions(actions).plain
        == """\
ACTION  SERVER  ADDRESS  STATE        KNOWN BY    SUMMARY
take    inv     c:1      reachable    registered  Takes one
take    i2      d:1      unreachable  configured  Takes one
"""
    )


def test_result() -> None:
    failed = SagaResult("s1", SagaState.UNDONE, None, (NodeError("a", Phase.DO, "No."),))
    assert render.result(failed).plain == 'saga "s1": undone\nerrors:\n  node "a": No.\n'


def test_dot() -> None:
    saga = SagaView(
        SagaSummary('s"1', "trip", SagaState.RUNNING),
        nodes=(
            node("a", NodeState.DONE, 0),
            node("sub", NodeState.WORKING, 1, "a", subsaga=True),
            node("sub/x", NodeState.DONE, 0),
            node("sub/y", NodeState.WORKING, 1, "sub/x"),
            node("z", NodeState.BLOCKED, 2, "sub"),
        ),
    )
    assert (
        dot(saga)
        == """\
digraph "s\\"1" {
  label="trip s\\"1: running";
  compound=true;
  node [shape=box, style="rounded,filled", fontname="sans-serif"];
  "a" [label="A\\na\\ndone", fillcolor="palegreen"];
  subgraph "cluster_sub" {
    label="Sub\\nsub\\nworking"; style=rounded; bgcolor="lightskyblue";
    "sub/x" [label="Sub/X\\nsub/x\\ndone", fillcolor="palegreen"];
    "sub/y" [label="Sub/Y\\nsub/y\\nworking", fillcolor="lightskyblue"];
  }
  "z" [label="Z\\nz\\nblocked", fillcolor="gray92"];
  "a" -> "sub/x" [lhead="cluster_sub"];
  "sub/x" -> "sub/y";
  "sub/y" -> "z" [ltail="cluster_sub"];
}
"""
    )


def test_exit_codes_of_states() -> None:
    assert {s: exit_code_of_state(s) for s in (SagaState.DONE, SagaState.UNDONE, SagaState.STUCK, SagaState.CORRUPT)} == {
        SagaState.DONE: 0,
        SagaState.UNDONE: 1,
        SagaState.STUCK: 4,
        SagaState.CORRUPT: 4,
    }
