"""What the pages say of the code is true of the code: links, commands, settings, error codes, diagrams."""

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote

import click
import pytest
from click.testing import CliRunner
from docs_support import ROOT, blocks, pages
from sec_client.kit import ddl
from sec_protos.v1 import records_pb2
from secctl import controls
from secctl.__main__ import cli as secctl
from secctl.errors import EXIT_CODES

from sec.cli import main as sec
from sec.core.status import NodeState

PAGES = pages()
OPERATIONS = ROOT / "docs" / "operations.md"
CLIENT = ROOT / "docs" / "client.md"
SEMANTICS = ROOT / "docs" / "semantics.md"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def without_code(text: str) -> str:
    """The prose of a page: no fenced blocks, no inline code, no targets of links."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`\n]*`", "", text)
    return re.sub(r"\]\([^)]*\)", "]", text)


def table_rows(page: Path, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    text = page.read_text(encoding="utf-8")
    _, found, rest = text.partition(f"\n{heading}\n")
    assert found, f"{page.name} has no heading {heading!r}"
    rows = []
    for line in rest.splitlines():
        if line.startswith("|"):
            rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif rows:
            break
    return rows[2:]


def test_the_readme_is_short_and_begins_with_the_two_commands() -> None:
    readme = ROOT / "README.md"
    assert len(readme.read_text(encoding="utf-8").splitlines()) <= 150
    commands = [line.split("#")[0].strip() for b in blocks(readme) if b.language == "bash" for line in b.text.splitlines()]
    assert commands[:2] == ["make demo", "make test"]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / unquote(path)).resolve() if path else page
        assert found.exists(), f'{name_of(page)} links to "{target}", which does not exist'
        if anchor:
            assert anchor in anchors(found), f'{name_of(page)} links to "{target}", but {name_of(found)} has no such heading'


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as forges make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_words_are_those_of_the_glossary(page: Path) -> None:
    if page.name == "glossary.md":
        return
    wrong = re.findall(
        r"\b(?:aborts?|aborted|compensat\w+|requests?|workflows?|tasks?|workers?)\b", without_code(page.read_text()), re.IGNORECASE
    )
    allowed = {
        "deploy/README.md": ["requests"],  # Kubernetes' word for what a container asks for
    }
    assert wrong == allowed.get(name_of(page), [])


@pytest.mark.parametrize("name", ["design.md", "semantics.md"])
def test_the_diagrams_show_the_transition_tables(name: str) -> None:
    gen_diagram = load_tool("gen_diagram")
    path = ROOT / "docs" / name
    page = path.read_text(encoding="utf-8")
    assert path in gen_diagram.PAGES
    assert gen_diagram.updated(page) == page, f"docs/{name} has drifted: run `make gen`"
    assert "undo_failed --> undo_skipped: undo_skipped" in page


@pytest.mark.parametrize("name", ["design.md", "semantics.md"])
def test_a_diagram_that_has_drifted_is_noticed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gen_diagram = load_tool("gen_diagram")
    copies = []
    for page in gen_diagram.PAGES:
        copy = tmp_path / page.name
        copy.write_text(gen_diagram.updated(page.read_text(encoding="utf-8")))
        copies.append(copy)
    drifted = tmp_path / name
    drifted.write_text(drifted.read_text().replace("started --> failed: failed", "started --> nowhere: failed"))
    monkeypatch.setattr(gen_diagram, "PAGES", tuple(copies))
    assert gen_diagram.main(["--check"]) == 1
    assert capsys.readouterr().err.count(name) == 1
    assert "nowhere" in drifted.read_text()
    assert gen_diagram.main([]) == 0
    assert gen_diagram.main(["--check"]) == 0
    assert "nowhere" not in drifted.read_text()


def test_the_semantics_explain_every_record() -> None:
    shown = {row[0].strip("`") for row in table_rows(SEMANTICS, "## The records of a saga")}
    assert shown == {field.name for field in records_pb2.Record.DESCRIPTOR.fields}


def test_the_semantics_explain_every_state_that_a_node_is_shown_in() -> None:
    shown = {row[0].strip("`") for row in table_rows(SEMANTICS, "## The states of a node, by its records")}
    assert shown == {state.value for state in NodeState}


def test_the_semantics_explain_every_command() -> None:
    shown = {row[0].strip("`") for row in table_rows(SEMANTICS, "## Commands")}
    assert shown == {command.name for command in controls.COMMANDS}


def load_tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """A command and all below it, by what a user types."""
    yield name, command
    if isinstance(command, click.Group):
        for child_name, child in command.commands.items():
            yield from commands(f"{name} {child_name}", child)


COMMANDS = [*commands("sec", sec), *commands("secctl", secctl)]


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_the_help_of_every_command_reads_as_documentation(name: str, command: click.Command) -> None:
    program, *arguments = name.split()
    result = CliRunner().invoke({"sec": sec, "secctl": secctl}[program], [*arguments, "--help"], prog_name=program)
    assert result.exit_code == 0, result.output
    usage, _, rest = result.output.partition("\n\n")
    assert usage.startswith(f"Usage: {name}")
    assert rest.strip()
    if not isinstance(command, click.Group):
        assert re.search(r"^\s*Examples?\b", rest, flags=re.MULTILINE), f"`{name} --help` has no example"
        assert name in rest.partition("Example")[2], f"the example of `{name} --help` does not use it"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"the option {parameter.opts[0]} of `{name}` has no help"


def test_the_settings_are_those_of_sec_node() -> None:
    node = sec.commands["node"]
    shown = {row[0].strip("`"): (row[1].strip("`"), row[2]) for row in table_rows(OPERATIONS, "## Settings")}
    options: dict[str, click.Option] = {p.opts[0]: p for p in node.params if isinstance(p, click.Option) and p.name != "help"}
    assert list(shown) == list(options)
    for name, option in options.items():
        variable, default = shown[name]
        assert variable == f"SEC_NODE_{str(option.name).upper()}"
        if default.startswith("`"):
            assert default.strip("`") == str(option.default)
        else:
            assert not isinstance(option.default, int)


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("SEC_NODE_LEASE_TTL", "1", "The lease TTL is 1 s"),
        ("SEC_NODE_PREFIX", "sec", 'The prefix "sec" must begin'),
        ("SEC_NODE_MAX_PAYLOAD", "1", "The payload limit is 1 bytes"),
        ("SEC_NODE_ETCD_USER", "me", "needs a password"),
        ("SEC_NODE_PEER_CA", __file__, "--peer-ca is for nodes that serve over TLS"),
        ("SEC_NODE_TLS_CERT", __file__, "--tls-cert and --tls-key go together"),
    ],
)
def test_the_environment_sets_what_the_page_says(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, complaint: str
) -> None:
    monkeypatch.setenv(variable, value)
    result = CliRunner().invoke(
        sec, ["node", "--listen", "127.0.0.1:0", "--etcd", "127.0.0.1:1"], prog_name="sec", auto_envvar_prefix="SEC"
    )
    assert result.exit_code == 2
    assert complaint in " ".join(result.output.split())


def test_every_error_code_is_explained_and_none_is_invented() -> None:
    shown = {row[0].strip("`"): row[1] for row in table_rows(OPERATIONS, "## Error codes")}
    assert shown == codes_in_the_code()


def codes_in_the_code() -> dict[str, str]:
    """The codes that the services answer, with their statuses, read from the sources of `sec.api`."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / "sec" / "api").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            match node.func.id, node.args:
                case "ApiError", [status, ast.Constant(value=str(code)), *_]:
                    assert isinstance(status, ast.Attribute)
                    found[code] = status.attr
                case "_too_large", [_, _, ast.Constant(value=str(what))]:
                    found[f"{what}_too_large"] = "INVALID_ARGUMENT"
                case "invalid", _:
                    found["invalid_argument"] = "INVALID_ARGUMENT"
    return found


def test_the_overview_of_secctl_is_complete() -> None:
    shown = {" ".join(re.findall(r"[a-z]+(?:-[a-z]+)*", row[0])[:3]) for row in table_rows(CLIENT, "## secctl")}
    assert shown == {name for name, command in COMMANDS if name.startswith("secctl ") and not isinstance(command, click.Group)}


def test_the_exit_codes_are_those_of_the_help() -> None:
    text = CLIENT.read_text(encoding="utf-8").partition("Exit codes, for scripts:")[2]
    shown = re.findall(r"^\| (\d+) \| (.+) \|$", text, flags=re.MULTILINE)
    assert shown == re.findall(r"^  (\d+) +(.+)$", EXIT_CODES, flags=re.MULTILINE)


def test_the_tables_of_the_kit_are_those_that_it_makes() -> None:
    [shown] = [block.text for block in blocks(ROOT / "docs" / "action-servers.md") if block.language == "sql"]
    assert shown == "".join(f"{statement};\n" for statement in ddl("postgresql"))


def test_make_lists_its_targets() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony: Any = re.search(r"^\.PHONY: (.+)$", makefile, flags=re.MULTILINE)
    assert phony is not None
    assert set(phony[1].split()) == set(re.findall(r"^([a-z-]+):.*## ", makefile, flags=re.MULTILINE))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", text, flags=re.MULTILINE):
            assert "".join(target) in phony[1].split(), f"{name_of(page)} speaks of `make {''.join(target)}`"
