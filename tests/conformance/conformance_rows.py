"""What the saga semantics must reproduce, row by row: what `make conformance` prints. Each row is tested where `levels` says.

A test names its row and its level: `@pytest.mark.conformance(row="run", level="cluster")`. Several tests may stand for one row.
"""

from dataclasses import dataclass

BOTH = ("core", "cluster")
CORE = ("core",)
CLUSTER = ("cluster",)


@dataclass(frozen=True)
class Row:
    """`levels`: where it can be tested. At the core what only the API does has no meaning; at the cluster, what never leaves the core."""

    name: str
    levels: tuple[str, ...] = BOTH


STATES = (
    "blocked",
    "queued",
    "working",
    "retrying",
    "done",
    "failed",
    "outcome-unknown",
    "undo-queued",
    "undoing",
    "abandoned",
    "undone",
    "undo-failed",
    "undo-skipped",
    "waiting",
)

SECTIONS: dict[str, tuple[Row, ...]] = {
    "The demo saga": (
        Row("nodes in order of insertion"),
        Row("status before start"),
        Row("run"),
        Row("error injected at instance_boot"),
        Row("error injected at instance_boot, and the undo of instance_id fails for good"),
        Row("recovered from a complete log"),
        Row("recovered with the last 5 records cut off"),
        Row("a failed one recovered with the last 3 records cut off"),
        Row("a stuck one recovered"),
    ),
    "How often n1 and n2 are called, do/undo": (
        Row("plain: 1/0, 1/0"),
        Row("repeat n1 do 2: 2/0, 1/0"),
        Row("repeat n1 2/1 and n2 fails: 2/1, 0/0"),
        Row("repeat n1 2/2 and n2 fails: 2/2, 0/0"),
        Row("repeat n1 1/2 and n2 fails: 1/2, 0/0"),
        Row("repeat n1 3/5 and n2 fails: 3/5, 0/0"),
        Row("n1 fails: nothing is called"),
    ),
    "Definition errors": (
        Row("an empty parallel stage"),
        Row("a duplicate node name in one (sub)saga"),
        Row("a cycle"),
        Row("an edge to an unknown node"),
        Row("a subsaga whose params come from a node that it does not depend on"),
        Row("a node that reads the output of a node that is not its ancestor"),
        Row("no single final node"),
        Row("an action that no action server offers"),
        Row("more nodes than the limit"),
        Row("more bytes than the limit", CLUSTER),
    ),
    "API behaviour": (
        Row("created but not started never runs"),
        Row("start of an unknown saga", CLUSTER),
        Row("double start"),
        Row("start of a finished saga"),
        Row("same id and same content twice: the one saga", CLUSTER),
        Row("list is paged", CLUSTER),
        Row("list is stable under concurrent submits", CLUSTER),
        Row("list filters on state, name, label and owner", CLUSTER),
        Row("a result waiter survives the death of the node it asked", CLUSTER),
        Row("several failures at once: the result names each, the first by time first"),
    ),
    "Status text": (
        Row("a tree, indented by parallel stage and subsaga: state, label, produces", CLUSTER),
        *(Row(f"state {state}") for state in STATES),
        Row("a failed node and a failed-then-unwound one look different"),
    ),
    "Bugs of the prior art": (
        Row("two sources of truth for a node's state that tear"),
        Row("a join that never started while one parent is undone makes recovery refuse the saga"),
        Row("an invalid saga is stored before it is validated", CLUSTER),
        Row("log records without sequence, time or writer"),
        Row("log writes that are not fenced by ownership"),
        Row("status blocks while the store is written", CLUSTER),
        Row("a stuck saga is not a state of its own"),
        Row("one unrecoverable saga stops the recovery of all"),
        Row("paging cuts logs short", CLUSTER),
        Row("node names of a subsaga collide with those outside"),
        Row("an error injected at an unknown node is accepted silently"),
    ),
}

ROWS: dict[str, Row] = {row.name: row for rows in SECTIONS.values() for row in rows}
