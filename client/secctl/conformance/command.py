"""The command `secctl conformance`."""

import asyncio
from pathlib import Path

import click
from sec_client.transport import parse_addresses

from secctl.conformance import report
from secctl.conformance.lifecycle import NotStarted
from secctl.conformance.run import CLAUSES, Verdict, check_server
from secctl.errors import NOT_DONE, UNAVAILABLE, BadInput
from secctl.settings import Settings, common


@click.command()
@common
@click.argument("address", metavar="HOST:PORT")
@click.option(
    "--run", "command", metavar="COMMAND",
    help="The command that starts the server at this address. Then it must not run yet, and is also stopped, killed and started again.",
)  # fmt: skip
@click.option(
    "--clause", "clauses", multiple=True, type=click.Choice(CLAUSES), metavar="NAME", help="Check this clause only. Repeatable."
)
@click.option(
    "--junit",
    "junit_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the results as JUnit's XML, too.",
)
@click.option("--patience", "patience_s", type=click.FloatRange(min=1), default=30.0, show_default=True, metavar="SECONDS",
              help="For one call with its repetitions, and for a start or a stop of the server.")  # fmt: skip
@click.pass_context
def conformance(
    ctx: click.Context,
    settings: Settings,
    address: str,
    command: str | None,
    clauses: tuple[str, ...],
    junit_file: Path | None,
    patience_s: float,
) -> None:
    """Check that a running action server keeps the contract.

    The server is called as SEC nodes call it, and must offer three actions for that: conformance.add, conformance.balance and
    conformance.echo, which docs/action-servers.md specifies. No cluster is needed, and no other action is called. What it leaves at the
    server are answers and balances of sagas that nobody else knows.

    Each check names the clause of protos/sec/v1/action_server.proto that it looks at. Exits with 1 when one is broken.

    \b
    Examples:
      secctl conformance 127.0.0.1:7070
      secctl conformance 127.0.0.1:7070 --run "./server --listen 127.0.0.1:7070" --junit report.xml
      secctl conformance 127.0.0.1:7070 --clause idempotent-do --clause stale-epoch
    """
    try:
        (address,) = parse_addresses([address])
    except ValueError as e:
        raise BadInput(str(e)) from None
    try:
        results = asyncio.run(
            check_server(address, tls=settings.tls, command=command, clauses=clauses or CLAUSES, patience_s=patience_s)
        )
    except NotStarted as e:
        click.echo(f"error: {e}", err=True)
        ctx.exit(UNAVAILABLE)
    if junit_file is not None:
        try:
            junit_file.write_text(report.junit(address, results), encoding="utf-8")
        except OSError as e:
            raise BadInput(f'The report cannot be written to "{junit_file}": {e.strerror or e}.') from None
    settings.show(report.text(address, results), report.shape(address, results))
    if any(result.verdict is Verdict.BROKEN for result in results):
        ctx.exit(NOT_DONE)
