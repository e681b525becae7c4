"""`sec bench`: measures how many sagas a cluster runs, and what each action costs."""

import itertools
import json
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from sec.bench.figures import Figures
    from sec.bench.limits import Limits
    from sec.bench.shapes import Shape


def _numbers(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    words = [word.strip() for word in value.split(",")]
    if not all(word.isdecimal() and int(word) for word in words):
        raise click.BadParameter(f'"{value}" is no list of numbers from 1 on, such as 1,16.')
    return tuple(int(word) for word in words)


def _shapes(context: click.Context, parameter: click.Parameter, value: str) -> "tuple[Shape, ...]":
    from sec.bench.shapes import shape

    try:
        return tuple(shape(word.strip()) for word in value.split(","))
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _processes(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
    found = {}
    for value in values:
        name, _, pid = value.partition("=")
        if not name or not pid.isdecimal() or not Path("/proc", pid).exists():
            raise click.BadParameter(f'"{value}" names no process of this machine: give NAME=PID, such as sec-1=4711.')
        found[name] = int(pid)
    return found


@click.command()
@click.option(
    "--sec", metavar="ADDRESSES", help="SEC nodes that run, with commas.  [default: clusters are started on this machine]"
)
@click.option(
    "--listen",
    default="127.0.0.1:0",
    show_default=True,
    metavar="ADDRESS",
    help="Where the SEC nodes of --sec reach the action server of the bench.",
)
@click.option("--nodes", default="1,3", show_default=True, callback=_numbers, help="Sizes of the clusters that are started.")
@click.option("--etcd", default="1", show_default=True, callback=_numbers, help="Members of their etcd, which syncs to disk.")
@click.option(
    "--clusters",
    default="1",
    show_default=True,
    callback=_numbers,
    help="How many clusters are started beside each other, each with an etcd of its own. A saga goes to the one that the hash of its id says.",
)
@click.option(
    "--cores",
    default=0,
    metavar="N",
    type=click.IntRange(0),
    help="Processors that each of these clusters has to itself.  [default: all have all]",
)
@click.option(
    "--pid",
    "pids",
    multiple=True,
    metavar="NAME=PID",
    callback=_processes,
    help="With --sec: a process of this machine whose CPU time and memory are told, such as sec-1=4711 or etcd-1=4712. May be repeated.",
)
@click.option(
    "--etcd-endpoints",
    default="",
    metavar="URLS",
    help="With --sec: the client URLs of all members of its etcd, with commas, whose metrics tell transactions and bytes.",
)
@click.option(
    "--shape",
    "shapes",
    default="chain:5",
    show_default=True,
    callback=_shapes,
    help="chain:N, fan:N (N beside each other and one behind), fail:N (a chain whose last action fails), subs:N (N subsagas beside each other, and one behind).",
)
@click.option(
    "--in-flight", default="1,16,64,512", show_default=True, callback=_numbers, help="How many sagas at a time, for each cluster."
)
@click.option(
    "--payload",
    default=200,
    show_default=True,
    metavar="BYTES",
    type=click.IntRange(0, 200_000),
    help="Of the params, and of each output.",
)
@click.option(
    "--seconds", default=10.0, show_default=True, type=click.FloatRange(0.1, 3600), help="For each row, behind a warm-up of 2 s."
)
@click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="A file for the figures.")
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), help="A folder for data and logs, which then stay.")
def bench(
    sec: str | None,
    listen: str,
    nodes: tuple[int, ...],
    etcd: tuple[int, ...],
    clusters: tuple[int, ...],
    cores: int,
    pids: dict[str, int],
    etcd_endpoints: str,
    shapes: "tuple[Shape, ...]",
    in_flight: tuple[int, ...],
    payload: int,
    seconds: float,
    file: Path | None,
    keep: Path | None,
) -> None:
    """Measures how many sagas a cluster runs, and what each action costs.

    A number of sagas is kept in flight: when one has ended the next is submitted. Times run from the call of submit to the end. The action server is one of ours,
    whose actions do nothing, and counts them. Of a cluster that it starts itself it also tells CPU times, memory, what etcd had to do, and how the figures stand to the raw
    limits of the machine, measured in the same run. Ratios can be compared on a machine that is busy with other things as well; actions/s cannot.

    \b
    Exit codes:
        0  all was measured
        2  it could not be

    \b
    Examples:
        sec bench --nodes 1 --in-flight 512
        sec bench --shape chain:5,fan:20,fail:5,subs:2 --etcd 1,3 --json figures.json
        sec bench --nodes 1 --clusters 1,2 --cores 1 --in-flight 256
        sec bench --sec 10.0.0.1:7450,10.0.0.2:7450 --listen 10.0.0.9:7070 --etcd-endpoints http://10.0.0.5:2379
    """
    import uvloop
    from sec_client import SagaError

    from sec.bench.run import CannotMeasure, Options, Own, Seen, on_own, on_running
    from sec.dev.cluster import NodeNotServing
    from sec.dev.etcd import EtcdNotStarted

    if sec is None and (pids or etcd_endpoints):
        raise click.UsageError("--pid and --etcd-endpoints are for SEC nodes that run: name these by --sec.")
    options = Options(shapes, in_flight, payload, seconds)
    try:
        if sec is not None:
            seen = Seen(pids, [url.strip() for url in etcd_endpoints.split(",") if url.strip()])
            found = uvloop.run(_told(on_running(options, [address.strip() for address in sec.split(",")], listen, seen)))
        else:
            found = []
            with tempfile.TemporaryDirectory() as scratch:
                for members, size, count in itertools.product(etcd, nodes, clusters):
                    own = Own(size, members, count, cores)
                    folder = (keep or Path(scratch)) / f"etcd-{members}-nodes-{size}-clusters-{count}"
                    found += uvloop.run(_told(on_own(options, folder, own), head=not found))
    except (CannotMeasure, SagaError, EtcdNotStarted, NodeNotServing) as error:
        raise _CannotMeasure(str(error)) from error
    if file is not None:
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


async def _told(rows: "AsyncIterator[Limits | Figures] | AsyncIterator[Figures]", *, head: bool = True) -> list[dict[str, Any]]:
    """Prints the rows as they come, and returns them."""
    from dataclasses import asdict

    from sec.bench.figures import HEAD, told
    from sec.bench.limits import Limits

    found: list[dict[str, Any]] = []
    if head:
        click.echo(HEAD)
    async for each in rows:
        click.echo(told(each) if isinstance(each, Limits) else str(each))
        found.append(asdict(each))
    return found


class _CannotMeasure(click.ClickException):
    exit_code = 2
