"""`sec chaos`: tries whether a cluster keeps its promises while its processes and its network are at fault."""

import sys
import time
from pathlib import Path

import click

KINDS = (
    *("kill", "stop", "restart", "drain", "lease", "failpoint", "servers"),
    *("partition", "oneway", "delay", "reset", "repeat", "etcd"),
)


@click.group()
def chaos() -> None:
    """Tries whether a cluster keeps its promises while its processes and its network are at fault."""


def _kinds(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    words = tuple(dict.fromkeys(word.strip() for word in value.split(",") if word.strip()))
    for word in words:
        if word not in KINDS:
            raise click.BadParameter(f'"{word}" is no kind of fault; there are {", ".join(KINDS)}.')
    return words


@chaos.command("run")
@click.option("--seed", type=int, help="What is done, and when, follows from this number.  [default: one that is drawn and told]")
@click.option(
    "--duration", default=60.0, show_default=True, metavar="SECONDS", type=click.FloatRange(1), help="How long there are faults."
)
@click.option("--nodes", default=3, show_default=True, type=click.IntRange(1, 9), help="How many SEC nodes.")
@click.option(
    "--faults",
    metavar="KINDS",
    callback=_kinds,
    help="What is done, with commas. To SEC nodes: kill, stop, restart, drain, lease (it is revoked), failpoint (they die or hang at a "
    "certain point). servers: kill, stop and restart of action servers. Between processes: partition, oneway, delay, reset. "
    "repeat: dispatches come again, and late. etcd: kill, stop, restart and replacement of members. Empty: nothing.  "
    "[default: all; etcd with 3 members or more, of a version that is sound]",
)
@click.option("--etcd", default=1, show_default=True, type=click.IntRange(1, 7), help="How many members of etcd.")
@click.option("--rate", default=5.0, show_default=True, metavar="SAGAS/S", type=click.FloatRange(0.1, 200), help="Sagas submitted.")
@click.option("--lease-ttl", default=5, show_default=True, metavar="SECONDS", type=click.IntRange(2, 600), help="As of `sec node`.")
@click.option(
    "--settle",
    default=90.0,
    show_default=True,
    metavar="SECONDS",
    type=click.FloatRange(1),
    help="In which all sagas must settle once the faults are healed.",
)
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="An empty folder for all that is found.  [default: sec-chaos-SEED-TIME]",
)
@click.option("--etcd-binary", metavar="PATH", help="The etcd to run, as of `sec dev`.")
def run_(
    seed: int | None,
    duration: float,
    nodes: int,
    faults: tuple[str, ...] | None,
    etcd: int,
    rate: float,
    lease_ttl: int,
    settle: float,
    directory: Path | None,
    etcd_binary: str | None,
) -> None:
    """Runs a cluster of its own on this machine, submits sagas, injects faults, and checks every invariant.

    All faults are healed in the end, and all sagas must settle. In the folder there are then the history, the logs of all sagas, those of all
    processes, the effects, and report.html. The plan is a function of the seed and the other options; what comes of it depends on the machine too.

    \b
    Exit codes:
        0  every invariant holds
        1  one does not
        2  the run could not be made

    \b
    Examples:
        sec chaos run --seed 7 --duration 60 --nodes 3 --etcd 3
        sec chaos run --faults kill,servers --rate 20
    """
    from sec.chaos.plan import ETCD_MEMBERS, FaultKind, Options
    from sec.chaos.run import CannotRun, possible, run

    seed = int(time.time()) if seed is None else seed
    directory = directory or Path(time.strftime(f"sec-chaos-{seed}-%Y%m%d-%H%M%S"))
    try:
        kinds = possible(etcd, etcd_binary) if faults is None else tuple(FaultKind(word) for word in faults)
        options = Options(seed, duration, nodes, etcd, kinds, rate, lease_ttl)
        if faults is None and etcd >= ETCD_MEMBERS and FaultKind.ETCD not in kinds:
            click.echo(
                "Members of etcd are not killed: this version can lose what it acknowledged then. Name a sound one by --etcd-binary."
            )
        click.echo(f"Chaos for {duration:g} s with seed {seed}, in {directory} …")
        verdict = run(options, directory, settle_s=settle, etcd_binary=etcd_binary)
    except CannotRun as error:
        raise _CannotRun(str(error)) from error
    _tell(verdict.summary)
    sys.exit(1 if verdict.violations else 0)


@chaos.command("check")
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
def check_(directory: Path) -> None:
    """Checks again what a run left in DIRECTORY, and writes its report anew.

    Exit codes are those of `sec chaos run`.

    \b
    Examples:
        sec chaos check sec-chaos-7
    """
    from sec.chaos.run import CannotRun, check_directory

    try:
        verdict = check_directory(directory)
    except CannotRun as error:
        raise _CannotRun(str(error)) from error
    _tell(verdict.summary)
    sys.exit(1 if verdict.violations else 0)


def _tell(lines: tuple[str, ...]) -> None:
    for line in lines:
        click.echo(line)


class _CannotRun(click.ClickException):
    exit_code = 2
