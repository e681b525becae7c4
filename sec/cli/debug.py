"""`sec debug`: looks into sagas without a cluster."""

import sys
from typing import TextIO

import click


@click.group()
def debug() -> None:
    """Looks into sagas without a cluster."""


@debug.command("recover")
@click.argument("file", type=click.File("r", encoding="utf-8"))
@click.option(
    "--definition",
    metavar="FILE",
    help="What the saga was submitted from (YAML, JSON or MODULE:OBJECT), where FILE has no definition.",
)
def recover_(file: TextIO, definition: str | None) -> None:
    """Folds a saga log that was exported to FILE (- is stdin), and tells what an SEC node would make of it.

    It prints the tree of the saga's nodes, where the saga stands, who wrote which records, all that went wrong, and which records and calls would
    follow if an SEC node took the saga over now. Nothing is written and nothing is called. Of a log that makes no sense it prints
    what does, and where it stops.

    \b
    Exit codes:
        0  the log makes sense
        1  it does not: SEC nodes leave this saga alone
        2  the file, or the definition, cannot be used

    \b
    Examples:
        secctl saga log trip-4711 --export trip-4711.jsonl
        sec debug recover trip-4711.jsonl --definition trip.yaml
    """
    from secctl.errors import BadInput
    from secctl.sources import load_saga

    from sec.debug import CannotRecover, read_export, recover, report

    try:
        log = read_export(file.read())
        recovered = recover(log, None if definition is None else load_saga(definition))
    except (CannotRecover, UnicodeDecodeError) as error:
        raise BadInput(str(error)) from error
    click.echo(report(recovered), nl=False)
    if recovered.problem:
        sys.exit(1)
