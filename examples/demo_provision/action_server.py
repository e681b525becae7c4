"""The action server of `demo-provision`. Its effects are rows of the inventory, written in the transaction that holds the kit's mark.

    python -m examples.demo_provision.action_server --sec 127.0.0.1:7450

What the params of a saga may say, for demonstrations and tests (the nodes of the subsaga see the constant `server_alloc_params` instead):

    delay_s        seconds that each action and undo takes, or a mapping from full paths of nodes to seconds
    fail_at        full path of a node, or a list of them, whose action fails
    undo_fail_at   the same for undo actions: the saga gets stuck
"""

import argparse
import asyncio
import hashlib
import logging
import os
import sqlite3
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from sec_client.kit import ActionFailed, ActionServer, Call, SqliteStore

from examples.demo_provision.inventory import DEFAULT_PATH, create, prepare, remove

SERVERS_IN_A_RACK = 8

# Calls that take their time wait in here and not on threads, so there may be many.
server = ActionServer("inventory", max_concurrency=2000)
default_delay_s = 0.0


async def opened(call: Call) -> sqlite3.Connection:
    """Takes the time that the call is to take, fails when it is to fail, and opens the transaction for its effect: the last thing to wait for."""
    params = call.params if isinstance(call.params, dict) else {}
    delay_s = params.get("delay_s", default_delay_s)
    await asyncio.sleep(delay_s.get(call.node, default_delay_s) if isinstance(delay_s, dict) else delay_s)
    option = "fail_at" if call.phase == "do" else "undo_fail_at"
    chosen = params.get(option) or []
    if call.node in ([chosen] if isinstance(chosen, str) else chosen):
        raise ActionFailed(f"The params of the saga want the {call.phase} of this node to fail.", code="on_demand")
    return await call.open_db()


def takes_back(table: str) -> Callable[[Call], Awaitable[None]]:
    """The undo of an action that makes a row of this table."""

    async def undo(call: Call) -> None:
        remove(call, await opened(call), table)

    return undo


def drawn(call: Call, kind: str) -> str:
    """A name that is the same at every delivery of a call."""
    return f"{kind}-{hashlib.sha256(call.key.encode()).hexdigest()[:8]}"


@server.action(undo=takes_back("instances"))
async def create_instance(call: Call) -> str:
    """Makes an instance; answers its id."""
    db, instance = await opened(call), drawn(call, "i")
    create(call, db, "instances", instance=instance)
    return instance


@server.action(undo=takes_back("ips"))
async def allocate_ip(call: Call, instance_id: str) -> str:
    """Takes the lowest free address."""
    db = await opened(call)
    taken = {row[0] for row in db.execute("SELECT ip FROM ips")}
    ip = next(ip for n in range(1, 2**16 - 1) if (ip := f"10.0.{n >> 8}.{n & 255}") not in taken)
    create(call, db, "ips", ip=ip, instance=instance_id)
    return ip


@server.action(undo=takes_back("volumes"))
async def create_volume(call: Call, instance_id: str) -> str:
    """Makes a volume; answers its id."""
    db, volume = await opened(call), drawn(call, "vol")
    create(call, db, "volumes", volume=volume, instance=instance_id)
    return volume


@server.action(undo=takes_back("servers"))
async def choose_server(call: Call) -> str:
    """Chooses the server of a rack that has been chosen least often."""
    db = await opened(call)
    rack = str(call.params["rack"])
    chosen = dict(db.execute("SELECT server, count(*) FROM servers WHERE rack = ? GROUP BY server", (rack,)).fetchall())
    name = min((f"{rack}-server-{n}" for n in range(1, SERVERS_IN_A_RACK + 1)), key=lambda name: chosen.get(name, 0))
    create(call, db, "servers", server=name, rack=rack)
    return name


@server.action(undo=takes_back("reservations"))
async def reserve_server(call: Call, server_id: str) -> str:
    """Reserves room for an instance on the chosen server."""
    db = await opened(call)
    create(call, db, "reservations", server=server_id)
    return server_id


@server.action(undo=takes_back("configurations"))
async def configure_instance(call: Call, instance_id: str, instance_ip: str, server_alloc: str) -> None:
    """Tells the instance its address and its server."""
    db = await opened(call)
    create(call, db, "configurations", instance=instance_id, ip=instance_ip, server=server_alloc)


@server.action(undo=takes_back("attachments"))
async def attach_volume(call: Call, volume_id: str, instance_id: str) -> None:
    """Attaches the volume to the instance."""
    db = await opened(call)
    create(call, db, "attachments", volume=volume_id, instance=instance_id)


@server.action(undo=takes_back("boots"))
async def boot_instance(call: Call, instance_id: str, server_alloc: str) -> None:
    """Boots the instance."""
    db = await opened(call)
    create(call, db, "boots", instance=instance_id, server=server_alloc)


@server.action(undo=takes_back("printouts"))
async def print_summary(call: Call) -> dict[str, Any]:
    """Answers what was provisioned."""
    db, found = await opened(call), dict(sorted(call.inputs.items()))
    create(call, db, "printouts", text=", ".join(f"{name} {value}" for name, value in found.items()))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until SIGTERM or Ctrl-C."""
    global default_delay_s
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo_provision.action_server", description="Serves the actions of the saga demo-provision."
    )
    parser.add_argument(
        "--listen", default="127.0.0.1:0", metavar="HOST:PORT", help="where to listen; port 0 takes a free one (%(default)s)"
    )
    parser.add_argument(
        "--sec",
        default=os.environ.get("SEC_ADDRESSES", "127.0.0.1:7450"),
        metavar="ADDR,ADDR",
        help="SEC nodes to register with (SEC_ADDRESSES, else 127.0.0.1:7450); empty: they know the address",
    )
    parser.add_argument("--inventory", type=Path, default=DEFAULT_PATH, metavar="FILE", help="the SQLite file (%(default)s)")
    parser.add_argument(
        "--delay",
        type=float,
        default=float(os.environ.get("DEMO_DELAY_S", "0")),
        metavar="SECONDS",
        help="that each action takes whose saga does not say (DEMO_DELAY_S, else 0)",
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    default_delay_s = options.delay
    prepare(options.inventory)
    server.store = SqliteStore(options.inventory)
    try:
        server.run(options.listen, sec=options.sec)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
