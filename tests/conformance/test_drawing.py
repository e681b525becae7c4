"""`secctl saga graph`: pictures by Graphviz, and sentences where it is missing."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from client_support import FakeNode
from sec_protos.v1 import coordinator_pb2 as pb
from secctl.__main__ import cli

DOT = """\
#!/bin/sh
# Stands in for the program of Graphviz: tells how it was called and what it read.
test "$1" = -Kdot || exit 3
echo "$2"
cat
"""


@pytest.fixture
async def node() -> AsyncIterator[FakeNode]:
    fake = FakeNode()
    await fake.start()
    saga = pb.Saga(summary=pb.SagaSummary(saga_id="s1", name="trip", state=pb.SAGA_STATE_UNWINDING))
    saga.nodes.add(node="hotel", action="book", state=pb.NODE_STATE_UNDOING)
    saga.nodes.add(node="flight", action="fly", state=pb.NODE_STATE_FAILED, depends_on=["hotel"], rank=1)
    fake.answers["GetSaga"] = lambda _: pb.GetSagaResponse(saga=saga)
    yield fake
    await fake.die()


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder where programs are looked for."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    return programs


def install(programs: Path, script: str) -> None:
    (programs / "dot").write_text(script.replace("cat\n", "/bin/cat\n"))
    (programs / "dot").chmod(0o755)


async def graph(node: FakeNode, *arguments: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, cli, ["--sec", node.address, "saga", "graph", "s1", *arguments])


async def test_a_dot_file_needs_nothing(node: FakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "graphviz", None)
    result = await graph(node, "-o", str(tmp_path / "x.dot"))
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'x.dot'}\n"), result.output
    text = (tmp_path / "x.dot").read_text()
    assert text.startswith('digraph "s1" {\n')
    assert '"flight" [label="flight\\nflight\\nfailed", fillcolor="tomato"];' in text
    assert '"hotel" -> "flight";' in text
    assert text == (await asyncio.to_thread(CliRunner().invoke, cli, ["--sec", node.address, "saga", "dot", "s1"])).stdout


@pytest.mark.parametrize("form", ["svg", "png"])
async def test_a_picture_is_drawn_by_graphviz(node: FakeNode, tmp_path: Path, path: Path, form: str) -> None:
    install(path, DOT)
    result = await graph(node, "--output", str(tmp_path / f"x.{form}"))
    assert result.exit_code == 0, result.output
    first, _, rest = (tmp_path / f"x.{form}").read_text().partition("\n")
    assert first == f"-T{form}"
    assert rest.startswith('digraph "s1" {\n')
    assert 'fillcolor="orange"' in rest


async def test_without_graphviz_it_says_what_to_install(node: FakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "x.svg"
    result = await graph(node, "-o", str(target))
    assert result.exit_code == 2
    assert result.stderr == (
        f'error: "{target}" is drawn by the program "dot", which is not on the PATH: install Graphviz '
        "(apt install graphviz, dnf install graphviz, brew install graphviz), or write a .dot file, and draw that where Graphviz is.\n"
    )
    monkeypatch.setitem(sys.modules, "graphviz", None)
    result = await graph(node, "-o", str(target))
    assert result.exit_code == 2
    assert f'error: "{target}" needs the Python package graphviz: pip install "sec-cluster[cli]", or write' in result.stderr
    assert not target.exists()


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ("x.bmp", 'error: "x.bmp" does not say what to draw: let its name end with .svg, .png or .dot.\n'),
        ("svg", 'error: "svg" does not say what to draw: let its name end with .svg, .png or .dot.\n'),
        ("/nowhere/x.dot", 'error: "/nowhere/x.dot" cannot be written: No such file or directory.\n'),
    ],
)
async def test_a_file_that_cannot_be_written(node: FakeNode, file: str, sentence: str) -> None:
    result = await graph(node, "-o", file)
    assert (result.exit_code, result.stderr) == (2, sentence)


async def test_graphviz_that_fails_is_quoted(node: FakeNode, tmp_path: Path, path: Path) -> None:
    install(path, "#!/bin/sh\necho 'no fonts' >&2\nexit 1\n")
    result = await graph(node, "-o", str(tmp_path / "x.png"))
    assert (result.exit_code, result.stderr) == (2, f'error: The program "dot" could not draw "{tmp_path / "x.png"}": no fonts.\n')
