"""The commands of `secctl saga`."""

import asyncio
import sys
from collections.abc import Iterator
from itertools import islice

import click
from rich.text import Text
from sec_client import Deadline, DefinitionError, LogRecord, OnDeadline, SagaCorrupt, SagaResult, SagaState
from sec_client.errors import damaged_log
from sec_model import check_definition, compile_graph
from sec_model.versions import not_offered

from secctl import live, render, shapes
from secctl.dot import dot
from secctl.drawing import draw, drawing_format
from secctl.errors import EXIT_CODES, BadInput, exit_code_of_state
from secctl.export import read_log, write_log
from secctl.settings import Settings, common, connected
from secctl.sources import load_json, load_saga, parse_labels, parse_time_s, problems_text

_STATES = [str(state) for state in SagaState if state is not SagaState.UNKNOWN]


@click.group()
def saga() -> None:
    """Submit sagas, look at them, and wait for them."""


@saga.command(epilog=EXIT_CODES)
@common
@click.argument("source", metavar="FILE|MODULE:OBJECT")
@click.option("--id", "saga_id", help="The saga's id. Drawn when it is left out; give it to make a repeated submit harmless.")
@click.option("--params", metavar="JSON|@FILE", help="What the actions get as params; @- reads it from stdin.")
@click.option("--label", "labels", metavar="KEY=VALUE", multiple=True, help="For filters. May be repeated.")
@click.option("--deadline", metavar="TIME", help="How long it may take from its start, as in 90s, 10m, 1.5h or 2d.")
@click.option(
    "--on-deadline", type=click.Choice([then.value for then in OnDeadline]),
    help="What happens then: it unwinds (fail, the default), or it is paused.",
)  # fmt: skip
@click.option("--start-later", is_flag=True, help="Store it and do not start it: see `secctl saga start`.")
@click.option("--require-actions", is_flag=True, help="Refuse it when one of its actions is offered by no action server now.")
@click.option("--wait", is_flag=True, help="Wait until it has ended or is stuck, and print how.")
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(min=0), metavar="SECONDS", help="With --wait: how long. Default: for ever."
)
def submit(
    settings: Settings,
    source: str,
    saga_id: str | None,
    params: str | None,
    labels: tuple[str, ...],
    deadline: str | None,
    on_deadline: str | None,
    start_later: bool,
    require_actions: bool,
    wait: bool,
    timeout_s: float | None,
) -> None:
    """Submit a saga from a YAML or JSON file or from a Python module.

    OBJECT is a Saga, a Definition, or a function without arguments that returns one. Prints the saga's id. The definition is checked
    here, and again by the cluster, before anything is written.

    \b
    Examples:
      secctl saga submit trip.yaml --params '{"guest": "Ada"}' --wait
      secctl saga submit trips:booking --id trip-4711 --label team=travel --deadline 10m
    """
    if wait and start_later:
        raise click.UsageError("--wait and --start-later exclude each other: the saga would never end.")
    if on_deadline is not None and deadline is None:
        raise click.UsageError("--on-deadline says what happens at a --deadline: give that too.")
    definition, value, found = load_saga(source), load_json(params, "--params"), parse_labels(labels)
    within = None if deadline is None else Deadline(parse_time_s(deadline), OnDeadline(on_deadline or "fail"))
    with settings.client() as client:
        submitted = client.submit(
            definition,
            params=value,
            saga_id=saga_id,
            labels=found,
            start=not start_later,
            require_actions=require_actions,
            deadline=within,
        )
        for warning in submitted.warnings:
            click.echo(f"warning: {warning}", err=True)
        if not wait:
            settings.show(Text(f"{submitted.saga_id}\n"), shapes.submitted(submitted))
            return
        if not settings.json:
            click.echo(submitted.saga_id)
        _finish(settings, client.wait(submitted.saga_id, timeout_s=timeout_s))


@saga.command(epilog=EXIT_CODES)
@common
@click.argument("source", metavar="FILE|MODULE:OBJECT")
@click.option("--params", metavar="JSON|@FILE", help="Check these params too; @- reads them from stdin.")
def check(settings: Settings, source: str, params: str | None) -> None:
    """Check a saga as the cluster would, without submitting it.

    Its definition is checked first, and then what its nodes read, against what the actions want that are offered now, as far as the action servers
    describe them.

    \b
    Example:
      secctl saga check trip.yaml --params '{"guest": "Ada"}'
    """
    definition, value = load_saga(source), load_json(params, "--params")
    with settings.client() as client:
        found = client.actions()
    try:
        check_definition(definition, actions=found, params=value)
    except DefinitionError as error:
        raise BadInput(problems_text(f'"{source}" does not fit the actions that it calls', error.problems)) from None
    missing = not_offered(compile_graph(definition).action_names(), frozenset(a.name for a in found))
    for name in missing:
        click.echo(f'warning: No action server offers the action "{name}" now, so it could not be checked.', err=True)
    settings.show(Text(f'"{source}" is a valid saga.\n'), {"name": definition.name, "valid": True, "not_offered": missing})


@saga.command()
@common
@click.argument("saga_id")
def start(settings: Settings, saga_id: str) -> None:
    """Start a saga that was submitted with --start-later.

    \b
    Example:
      secctl saga start trip-4711
    """
    with settings.client() as client:
        client.start(saga_id)
    settings.show(Text(f"{saga_id}\n"), {"saga_id": saga_id})


@saga.command()
@common
@click.argument("saga_id")
def get(settings: Settings, saga_id: str) -> None:
    """Show the state of a saga and of each of its nodes.

    A tree with one line a node, indented by parallel stage and subsaga: the state, the label and the name under which other nodes read
    its output. Every error is named below.

    \b
    Example:
      secctl saga get trip-4711
    """
    with settings.client() as client:
        found = client.get(saga_id)
    settings.show(render.tree(found), shapes.saga(found))


@saga.command("list")
@common
@click.option("--state", "states", type=click.Choice(_STATES), multiple=True, help="Any of these states. May be repeated.")
@click.option("--name", default="", help="The name of the definition.")
@click.option("--label", "labels", metavar="KEY=VALUE", multiple=True, help="All of these labels. May be repeated.")
@click.option("--owner", default="", help="The SEC node that owns it.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="At most so many sagas.")
def list_(settings: Settings, states: tuple[str, ...], name: str, labels: tuple[str, ...], owner: str, limit: int) -> None:
    """List sagas, those that are stuck first, then the active ones, then those not started, then the ended ones.

    \b
    Examples:
      secctl saga list --state stuck --state unwinding
      secctl saga list --label team=travel --limit 20 --output json
    """
    filters = parse_labels(labels)
    with settings.client() as client:
        sagas = client.list(states=states, name=name, labels=filters, owner=owner, page_size=min(limit + 1, 1000))
        found = [*islice(sagas, limit + 1)]
    truncated = len(found) > limit
    found = found[:limit]
    settings.show(render.sagas(found), {"sagas": [shapes.summary(s) for s in found], "truncated": truncated})
    if truncated and not settings.json:
        click.echo(f"There are more than {limit}: raise --limit, or filter.", err=True)


@saga.command()
@common
@click.argument("saga_id")
@click.option(
    "--from", "from_sequence", type=click.IntRange(min=1), default=1, show_default=True, help="Sequence number to begin with."
)
@click.option("--follow", "-f", is_flag=True, help="Go on with each new record until the saga has ended.")
@click.option("--export", metavar="FILE|-", help="Write all of it to a file, for `sec debug recover`; - is stdout.")
def log(settings: Settings, saga_id: str, from_sequence: int, follow: bool, export: str | None) -> None:
    """Show the log of a saga: one record a line, with its sequence number, time, epoch and writer.

    With --export it is written as JSON lines: what the saga was submitted with, and then the records as the contract has them, with nothing
    left out. Such a file can be folded without a cluster: see `sec debug recover --help`.

    Of a log that is damaged the records before the damage are shown or written, an error says why they end there, and the exit code is 4.

    \b
    Examples:
      secctl saga log trip-4711
      secctl saga log trip-4711 --follow --output json
      secctl saga log trip-4711 --export trip-4711.jsonl
    """
    if export is not None:
        if follow or from_sequence > 1:
            raise click.UsageError("--export writes the whole log as it stands: leave out --follow and --from.")
        found = asyncio.run(read_log(settings, saga_id))
        write_log(found.lines, export)
        if export != "-":
            shown = Text(f"{found.records} records were written to {export}.\n")
            settings.show(shown, {"saga_id": saga_id, "file": export, "records": found.records})
        if found.problem:
            raise damaged_log(saga_id, found.problem)
        return
    with settings.client() as client:
        if follow:
            for record in client.watch(saga_id, from_sequence):
                settings.line(render.record(record), shapes.record(record))
            return
        records, damage = _readable(client.log(saga_id, from_sequence))
    if settings.json:
        problem = {} if damage is None else {"problem": damage.message}
        click.echo(shapes.text({"records": [shapes.record(r) for r in records], **problem}))
    else:
        for record in records:
            settings.line(render.record(record), None)
    if damage is not None:
        raise damage


def _readable(log: Iterator[LogRecord]) -> tuple[list[LogRecord], SagaCorrupt | None]:
    """The records of a log, and what stands in the way of more."""
    records: list[LogRecord] = []
    try:
        for record in log:
            records.append(record)  # noqa: PERF402 # those before the damage are kept
    except SagaCorrupt as damage:
        return records, damage
    return records, None


@saga.command(epilog=EXIT_CODES)
@common
@click.argument("saga_id")
def watch(settings: Settings, saga_id: str) -> None:
    """Watch a saga until it has ended.

    On a terminal the tree of `secctl saga get`, painted anew with each change. Otherwise, or with --output json, a line for each record of
    its log. Goes on when the SEC node that is asked dies. Ends with the exit code of `secctl saga wait`.

    \b
    Example:
      secctl saga watch trip-4711
    """
    if settings.console.is_terminal and not settings.json:
        state = asyncio.run(_live(settings, saga_id))
    else:
        last: LogRecord | None = None
        with settings.client() as client:
            for last in client.watch(saga_id):
                settings.line(render.record(last), shapes.record(last))
        state = SagaState.UNKNOWN if last is None or last.saga_state is None else last.saga_state
    sys.exit(exit_code_of_state(state))


async def _live(settings: Settings, saga_id: str) -> SagaState:
    async with settings.aio_client() as client:
        return (await live.follow(client, saga_id, settings.console)).state


@saga.command(epilog=EXIT_CODES)
@common
@click.argument("saga_id")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0), metavar="SECONDS", help="How long. Default: for ever.")
def wait(settings: Settings, saga_id: str, timeout_s: float | None) -> None:
    """Wait until a saga has ended or is stuck, and print how: its output, or every error.

    Goes on when the SEC node that is asked dies.

    \b
    Example:
      secctl saga wait trip-4711 --timeout 60 && echo booked
    """
    with settings.client() as client:
        _finish(settings, client.wait(saga_id, timeout_s=timeout_s))


@saga.command("dot")
@common
@click.argument("saga_id")
def dot_(settings: Settings, saga_id: str) -> None:
    """Print a saga as a Graphviz graph, with the states of its nodes as colours.

    \b
    Example:
      secctl saga dot trip-4711 | dot -Tsvg > trip.svg
    """
    with settings.client() as client:
        text = dot(client.get(saga_id, outputs=False))
    settings.show(Text(text), {"dot": text})


@saga.command()
@connected
@click.argument("saga_id")
@click.option("--output", "-o", "path", required=True, metavar="FILE", help="The picture to write: .svg, .png or .dot.")
def graph(settings: Settings, saga_id: str, path: str) -> None:
    """Draw a saga as a picture, with the states of its nodes as colours.

    For .svg and .png the program "dot" of Graphviz must be installed; a .dot file, which is what `secctl saga dot` prints, needs nothing.

    \b
    Examples:
      secctl saga graph trip-4711 -o trip.svg
      secctl saga graph trip-4711 --output trip.dot
    """
    form = drawing_format(path)
    with settings.client() as client:
        text = dot(client.get(saga_id, outputs=False))
    draw(text, form, path)
    settings.show(Text(f"{path}\n"), {"saga_id": saga_id, "file": path})


def _finish(settings: Settings, found: SagaResult) -> None:
    settings.show(render.result(found), shapes.result(found))
    sys.exit(exit_code_of_state(found.state))
