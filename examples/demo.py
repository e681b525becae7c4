"""What `make demo` shows: a saga whose owner is killed with SIGKILL while actions are in flight, and one that fails and is unwound.

An etcd, three SEC nodes and an action server run as processes of their own. Ends 0 when everything held that it claims.
"""

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.text import Text
from sec_client import LogRecord, NodeState, Saga, SagaState, SagaView
from sec_client.aio import Client
from sec_client.kit import Phase
from secctl import render

from examples.demo_provision.inventory import Inventory
from examples.demo_provision.saga import demo_provision
from sec.dev.cluster import DevCluster, NodeNotServing
from sec.dev.etcd import EtcdNotStarted
from sec.dev.processes import launch, log_tail

ROOT = Path(__file__).resolve().parent.parent
LEASE_TTL_S = 2
DEADLINE_S = 40.0
"""Of the whole demonstration, the start of the cluster apart."""
POLL_S = 0.02
IN_FLIGHT = {"instance_ip", "volume_id", "server_alloc/server_id"}
"""The actions that are under way when the owner is killed."""
ACTIONS = 9


class Disproved(Exception):
    """Something that the demonstration claims did not hold. The message says what."""


class Narrator:
    """Tells what happens, and checks what is claimed."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, markup=False, emoji=False)
        self._began = time.monotonic()

    def chapter(self, title: str) -> None:
        self.show(Text(f"\n{title}", "bold"))

    def say(self, text: str, style: str = "") -> None:
        self.show(Text(f"{time.monotonic() - self._began:6.2f} s  ", "dim").append(text, style))

    def show(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)

    def check(self, holds: bool, claim: str, otherwise: object = "") -> None:
        """Tells that a claim holds. Raises `Disproved` when it does not."""
        if not holds:
            raise Disproved(f"This does not hold: {claim} {otherwise}".rstrip())
        self.show(Text("    ok  ", "bold green").append(claim))


class ActionServerProcess:
    """The action server of the demo saga, as a process of its own."""

    def __init__(self, folder: Path, sec: Sequence[str]) -> None:
        self.log = folder / "action-server.log"
        self.inventory = Inventory(folder / "inventory.db")
        options = ["--sec", ",".join(sec), "--inventory", str(folder / "inventory.db")]
        command = [sys.executable, "-m", "examples.demo_provision.action_server", *options]
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = launch(command, self.log, environment={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})

    def stop(self) -> None:
        """SIGTERM, and SIGKILL when it does not go."""
        self._process.terminate()
        try:
            self._process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    async def wait_offering(self, client: Client) -> None:
        """Returns when the cluster can call all actions."""

        async def offered() -> bool:
            if self._process.poll() is not None:
                raise Disproved(f"The action server ended at its start. The end of {self.log}:\n{log_tail(self.log)}")
            actions = await client.actions()
            return len(actions) == ACTIONS and all(server.reachable for action in actions for server in action.servers)

        await until(offered)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Asks again and again. The deadline of the demonstration bounds it."""
    while not await condition():  # noqa: ASYNC110  # what other processes do sets no event here
        await asyncio.sleep(POLL_S)


async def a_saga_outlives_its_owner(tell: Narrator, cluster: DevCluster, client: Client, inventory: Inventory) -> None:
    saga_id = "survivor"
    tell.chapter("1. A saga whose owner is killed while actions are in flight")
    await client.submit(saga_with_delay(0.4), saga_id=saga_id, params={"delay_s": 0.4}, require_actions=True)
    tell.say(f'Saga "{saga_id}" is submitted: {ACTIONS} actions that take 0.4 s each.')

    view = await wait_in_flight(client, saga_id)
    owner, epoch_before = view.summary.owner, view.epoch
    tell.say(f'It is owned by SEC node "{owner}" in epoch {epoch_before}, and has three actions in flight:')
    tell.show(render.tree(view))

    pid = cluster.pid(owner)
    killed_at = datetime.now(UTC)
    cluster.kill(owner)
    tell.say(f'kill -9 {pid}: SEC node "{owner}" is dead.', "bold red")

    records = []
    async with aclosing(client.watch(saga_id)) as found:  # type: ignore[type-var]  # it is a generator
        async for record in found:
            records.append(record)
            if record.kind == "owner_changed":
                tell.say(
                    f'SEC node "{record.fields["sec_node"]}" has taken over, in epoch {record.fields["epoch"]}. '
                    f"Its first record was written {seconds_between(killed_at, record):.2f} s after the kill "
                    f"(the lease of a node is {LEASE_TTL_S} s here).",
                    "bold",
                )
    tell.say("The saga has ended. Its log tells what happened:")
    for record in records:
        tell.show(render.record(record))
    view = await client.get(saga_id)
    tell.show(render.tree(view))

    changes = [record for record in records if record.kind == "owner_changed"]
    tell.check(view.state is SagaState.DONE, "The saga is done.", view.state)
    tell.check(len(changes) == 1, "It changed its owner once.", changes)
    (change,) = changes
    unfinished = in_flight_before(records, change)
    tell.check(unfinished == IN_FLIGHT, "When its owner died three actions were started and had no outcome.", unfinished)
    successor = str(change.fields["sec_node"])
    tell.check(successor != owner and cluster.pid(successor) is not None, f'A survivor took over: "{owner}" → "{successor}".')
    tell.check(
        change.epoch > epoch_before, f"The epoch, which fences the dead owner off, went up: {epoch_before} → {change.epoch}."
    )
    writers = {(record.epoch, record.writer) for record in records}
    tell.check(
        writers == {(epoch_before, owner), (change.epoch, successor)},
        "Each of the two wrote in its own epoch and in no other.",
        writers,
    )
    effects = inventory.effects(saga_id)
    done = [effect for effect in effects if effect.phase is Phase.DO]
    tell.check(
        len(done) == len({effect.key for effect in done}) == ACTIONS,
        f"The inventory's journal has {ACTIONS} effects, each exactly once.",
    )
    tell.check(len(done) == len(effects), "Nothing was undone.", effects)
    problems = inventory.problems(saga_id)
    tell.check(not problems, "What exists in the inventory agrees with its journal.", problems)
    early = sorted(effect.node for effect in done if effect.epoch == epoch_before and effect.node in IN_FLIGHT)
    if early:
        tell.say(
            f"While the saga had no living owner these had their effect: {', '.join(early)}. The new owner called them again, "
            "with the same idempotency keys, and got the answers that the dead one had waited for."
        )


def saga_with_delay(delay_s: float) -> Saga:
    """The subsaga has params of its own."""
    return demo_provision({"rack": "r1", "delay_s": delay_s})


async def wait_in_flight(client: Client, saga_id: str) -> SagaView:
    """The saga, at a time when the three parallel actions are being called."""
    while True:
        view = await client.get(saga_id)
        if (
            view.summary.owner
            and {node.node for node in view.nodes if node.state is NodeState.WORKING and not node.subsaga} == IN_FLIGHT
        ):
            return view
        if view.state is not SagaState.RUNNING:
            raise Disproved(f'Saga "{saga_id}" is {view.state} before its parallel actions were seen in flight.')
        await asyncio.sleep(POLL_S)


def in_flight_before(records: Sequence[LogRecord], change: LogRecord) -> set[str]:
    """What was started and had no outcome when the owner changed."""
    before = [record for record in records if record.sequence < change.sequence]
    return {r.node for r in before if r.kind == "started"} - {r.node for r in before if r.kind == "succeeded"}


def seconds_between(start: datetime, record: LogRecord) -> float:
    """By the wall clock, which all processes of this machine share."""
    assert record.time is not None
    return (record.time - start).total_seconds()


async def a_saga_that_fails_leaves_nothing(tell: Narrator, client: Client, inventory: Inventory) -> None:
    saga_id = "unwound"
    tell.chapter("2. A saga whose last action fails")
    params = {"delay_s": 0.1, "fail_at": "print"}
    await client.submit(saga_with_delay(0.1), saga_id=saga_id, params=params, require_actions=True)
    tell.say(f'Saga "{saga_id}" is submitted; its last node, "print", will fail.')

    async with aclosing(client.watch(saga_id)) as found:  # type: ignore[type-var]  # it is a generator
        async for record in found:
            if record.kind == "failed":
                made = ", ".join(inventory.existing(saga_id))
                tell.say(f'Node "{record.node}" has failed. Until then this had been made: {made}.', "red")
            elif record.kind == "undo_finished":
                tell.say(f'Undone: "{record.node}"')
    view = await client.get(saga_id)
    tell.show(render.tree(view))

    tell.check(view.state is SagaState.UNDONE, "The saga is undone.", view.state)
    states = [view[path].state for path in ("print", "instance_boot", "instance_id")]
    tell.check(
        states == [NodeState.FAILED, NodeState.UNDONE, NodeState.UNDONE],
        'The node that failed is told from those that were undone: "print" is failed, the others are undone.',
        states,
    )
    effects = inventory.effects(saga_id)
    done, undone = ([e.key for e in effects if e.phase is phase] for phase in (Phase.DO, Phase.UNDO))
    tell.check(len(done) == len(set(done)) == ACTIONS - 1, f"{ACTIONS - 1} actions had their effect, each exactly once.", done)
    tell.check(sorted(undone) == sorted(done), "Each of these effects was undone exactly once.", undone)
    tell.check(inventory.is_empty(saga_id), "Its inventory is empty.", inventory.existing(saga_id))


def tell_what_next(tell: Narrator, folder: Path) -> None:
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    tell.chapter("Everything held. To explore further:")
    for line in (
        f"  {shown}/logs/ has what the SEC nodes said, {shown}/inventory.db the effects.",
        "  .venv/bin/sec dev             runs such a cluster until Ctrl-C, and tells what to do with it",
        "  .venv/bin/secctl --help       submits, watches and looks at sagas",
        "  examples/demo_provision/      is the saga that you saw; examples/trip/ is a tutorial",
    ):
        tell.show(Text(line))


async def demonstrate(folder: Path, tell: Narrator) -> None:
    """All of it. Raises `Disproved`, and what a `DevCluster` raises that does not start."""
    tell.chapter("A cluster: etcd, three SEC nodes, and an action server that keeps an inventory")
    async with DevCluster(folder, lease_ttl_s=LEASE_TTL_S) as cluster:
        action_server = ActionServerProcess(folder, cluster.addresses)
        try:
            async with asyncio.timeout(DEADLINE_S), Client(cluster.addresses) as client:
                await action_server.wait_offering(client)
                tell.say("All of them run:")
                found = render.nodes(await client.nodes())
                found.rstrip()
                tell.show(found)
                await a_saga_outlives_its_owner(tell, cluster, client, action_server.inventory)
                await a_saga_that_fails_leaves_nothing(tell, client, action_server.inventory)
        except TimeoutError:
            raise Disproved(f"The demonstration did not come to its end within {DEADLINE_S:g} s.") from None
        finally:
            action_server.stop()
    tell_what_next(tell, folder)


async def run(folder: Path, tell: Narrator) -> None:
    """`demonstrate`, until SIGINT or SIGTERM. Raises `asyncio.CancelledError` then, with nothing left running."""
    demonstration = asyncio.current_task()
    assert demonstration is not None
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, demonstration.cancel)
    await demonstrate(folder, tell)


def main(arguments: Sequence[str] | None = None) -> int:
    """Answers 0 when everything held, 1 when something did not, 130 when it was interrupted."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description="Shows a saga that outlives its owner.")
    parser.add_argument("--data", type=Path, default=Path(".demo"), help="folder for data and logs, emptied first (%(default)s)")
    folder: Path = parser.parse_args(arguments).data.resolve()
    for name in ("etcd", "logs"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for old in folder.glob("inventory.db*"):
        old.unlink()
    with contextlib.suppress(FileNotFoundError):
        (folder / "action-server.log").unlink()
    tell = Narrator()
    try:
        asyncio.run(run(folder, tell))
    except asyncio.CancelledError:
        tell.say("Interrupted; nothing is left running.")
        return 130
    except (Disproved, EtcdNotStarted, NodeNotServing) as error:
        tell.show(Text(f"\n{error}\nThe logs are in {folder}.", "bold red"))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
