"""`secctl` as a user runs it: a process of its own, against a cluster of real processes."""

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cluster_support import Stage
from waiting_support import eventually

SAGA = """
name: from-a-file
nodes:
  - {name: a, action: step, label: First}
  - parallel:
      - {name: b, action: step}
      - name: inner
        subsaga:
          nodes:
            - {name: x, action: step}
            - {name: y, action: step, reads: [x]}
  - {name: d, action: step, reads: {left: b, right: inner}}
"""


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int | None
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Secctl:
    stage: Stage
    folder: Path

    async def __call__(self, *arguments: str) -> Ran:
        addresses = ",".join(self.stage.cluster.addresses)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "secctl", "--sec", addresses, *arguments),
            cwd=self.folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), 60)
        assert b"Traceback" not in err
        return Ran(process.returncode, out.decode(), err.decode())


@pytest.fixture
def secctl(stage: Stage, tmp_path: Path) -> Secctl:
    stage.gate.touch()
    (tmp_path / "saga.yaml").write_text(SAGA)
    return Secctl(stage, tmp_path)


async def test_the_life_of_a_saga_from_the_command_line(secctl: Secctl) -> None:
    submitted = await secctl("saga", "submit", "saga.yaml", "--id", "cli-1", "--label", "team=docs", "--params", "{}", "--wait")
    assert submitted.code == 0, submitted.err
    again = await secctl("saga", "submit", "saga.yaml", "--id", "cli-1", "--label", "team=docs", "--params", "{}")
    assert again.code == 0, "the same again is the same saga"
    tree = await secctl("saga", "get", "cli-1")
    assert tree.out.splitlines() == [
        'saga "cli-1" (from-a-file): done',
        '├─ done: First, produces "a"',
        "├─ in parallel",
        '│  ├─ done: step, produces "b"',
        '│  └─ done: subsaga inner, produces "inner"',
        '│     ├─ done: step, produces "inner/x"',
        '│     └─ done: step, produces "inner/y"',
        '└─ done: step, produces "d"',
        'output: "d"',
    ]
    listed = (await secctl("--output", "json", "saga", "list", "--label", "team=docs", "--state", "done")).json
    assert "cli-1" in json.dumps(listed)
    log = await secctl("saga", "log", "cli-1")
    assert log.out.splitlines()[0].split()[0] == "1"
    assert "created" in log.out
    watched = await secctl("saga", "watch", "cli-1")
    assert watched.code == 0
    dot = await secctl("saga", "dot", "cli-1")
    assert dot.out.startswith("digraph")
    assert '"inner/y"' in dot.out


async def test_a_saga_that_fails_says_why(secctl: Secctl) -> None:
    ran = await secctl("saga", "submit", "saga.yaml", "--params", '{"fail": ["d"]}', "--wait")
    assert ran.code == 1
    assert "d does not work" in ran.out + ran.err


async def test_a_stuck_saga_has_a_code_of_its_own(secctl: Secctl) -> None:
    ran = await secctl("saga", "submit", "saga.yaml", "--params", '{"fail": ["d"], "undo_fail": ["inner/x"]}', "--wait")
    assert ran.code == 4
    assert "inner/x does not work" in ran.out + ran.err


async def test_nodes_and_actions(secctl: Secctl) -> None:
    nodes = (await secctl("node", "list", "--output", "json")).json
    assert {n["name"] for n in nodes["nodes"]} == set(secctl.stage.cluster.names)
    assert sum(n["leader"] for n in nodes["nodes"]) == 1
    actions = (await secctl("action", "list", "--output", "json")).json
    assert [a["name"] for a in actions["actions"]] == ["step"]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("saga", "get", "nobodys"), 5, 'There is no saga "nobodys".'),
        (("saga", "submit", "missing.yaml"), 2, "missing.yaml"),
        (("saga", "submit", "saga.yaml", "--params", "{"), 2, "--params"),
        (("saga", "submit", "saga.yaml", "--id", "a/b"), 2, '"a/b"'),
    ],
)
async def test_what_cannot_be_done_is_said_in_a_sentence(
    secctl: Secctl, arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    ran = await secctl(*arguments)
    assert ran.code == code, ran.err
    assert sentence in ran.err


async def test_steering_sagas_one_by_one_and_by_filter(secctl: Secctl) -> None:
    secctl.stage.gate.unlink()
    ids = ["steer-1", "steer-2", "steer-3"]
    for saga_id in ids:
        submitted = await secctl(
            *("saga", "submit", "saga.yaml", "--id", saga_id, "--label", "team=steering", "--params", '{"hold": ["a"]}')
        )
        assert submitted.code == 0, submitted.err
    paused = await secctl("saga", "pause", "--label", "team=steering", "--reason", "a try", "--yes")
    assert paused.code == 0, paused.err
    assert "would be given to 3 sagas: steer-1, steer-2, steer-3" in paused.err
    secctl.stage.gate.touch()

    async def shown() -> bool:
        return "paused: a try" in (await secctl("saga", "get", "steer-1")).out

    await eventually(shown)
    assert (await secctl("saga", "resume", "steer-1")).code == 0
    assert (await secctl("saga", "wait", "steer-1")).code == 0
    assert (await secctl("saga", "abort", "steer-2", "steer-3", "--reason", "enough")).code == 0
    assert (await secctl("saga", "wait", "steer-2")).code == 1
    assert (await secctl("saga", "wait", "steer-3")).code == 1
    assert secctl.stage.inventory("steer-2") == secctl.stage.inventory("steer-3") == []
    again = await secctl("saga", "abort", "steer-2")
    assert again.code == 5
    assert 'Saga "steer-2" is undone' in again.err
    neither = await secctl("saga", "pause")
    assert neither.code == 2
    assert "Name the sagas, or give a filter" in neither.err
