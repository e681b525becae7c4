"""`sec sim`: runs SEC nodes in a simulated world, to find faults of theirs."""

import sys

import click


@click.group()
def sim() -> None:
    """Simulates clusters, for those who work on the SEC node."""


@sim.command("run")
@click.option("--seeds", type=click.IntRange(1), default=1000, show_default=True, help="How many runs.")
@click.option("--first", type=click.IntRange(0), default=0, show_default=True, help="The first of their seeds.")
@click.option("--seed", type=click.IntRange(0), help="Runs this one only, and tells what happens in it.")
@click.option("--jobs", type=click.IntRange(1), help="Processes; as many as there are cores if not given.")
@click.option("--shrink/--no-shrink", "shrinking", default=True, show_default=True, help="Looks for a shorter script that fails.")
@click.option("--until-found", is_flag=True, help="Stops at the first seed that fails, and tells no more of it.")
def run(seeds: int, first: int, seed: int | None, jobs: int | None, *, shrinking: bool, until_found: bool) -> None:
    """Runs random sagas on simulated clusters in which everything goes wrong, and checks every invariant of the design.

    The SEC nodes are the real ones. etcd, the network, the action servers and the clocks are simulated: nodes are killed, stopped and cut off, and
    messages are lost and come late. One seed is one run, the same every time. For the first seed that fails the shortest script that
    fails in the same way is printed, with all that happens in it.

    \b
    Exit codes:
        0  no invariant was violated
        1  one was

    \b
    Examples:
        sec sim run --seeds 10000
        sec sim run --seed 4711
    """
    import os

    from sec.sim.seeds import MAX_FOUND, run_apart, run_seeds

    enough = 1 if until_found else MAX_FOUND
    found = [seed] if seed is not None else run_seeds(first, seeds, jobs or os.cpu_count() or 1, enough, click.echo)
    if not found:
        return
    if until_found:
        sys.exit(1)
    lines, failed = run_apart(found[0], shrinking=shrinking)
    for line in lines:
        click.echo(line)
    if failed:
        click.echo(f"\nRun it again: sec sim run --seed {found[0]}")
        sys.exit(1)
