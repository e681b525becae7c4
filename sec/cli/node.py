"""`sec node`: runs one SEC node."""

import logging
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sec.cli.tls import PEM_FILE, pair

if TYPE_CHECKING:
    from sec.api.server import TlsFiles
    from sec.run import NodeConfig

LOG_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


@click.command()
@click.option("--name", help="Unique in the cluster; stable over restarts is best.  [default: HOST-PORT]")
@click.option(
    "--listen", default="127.0.0.1:7450", show_default=True, metavar="HOST:PORT", help="Where to serve the Coordinator service."
)
@click.option(
    "--advertise",
    default="",
    metavar="HOST:PORT",
    help="Where clients and the other SEC nodes reach this node.  [default: what it listens on]",
)
@click.option(
    "--etcd",
    default="127.0.0.1:2379",
    show_default=True,
    metavar="HOST:PORT,...",
    help="Endpoints of etcd; all of its members is best.",
)
@click.option("--etcd-ca", type=PEM_FILE, help="PEM file: speak TLS to etcd, and trust certificates signed by these.")
@click.option("--etcd-cert", type=PEM_FILE, help="PEM file: our certificate for etcd.")
@click.option("--etcd-key", type=PEM_FILE, help="PEM file: its key.")
@click.option("--etcd-user", help="User name for etcd.")
@click.option("--etcd-password", envvar="SEC_NODE_ETCD_PASSWORD", help="Password for etcd; better in the environment than here.")
@click.option("--prefix", default="/sec", show_default=True, help="Prefix of all keys: one for each cluster that shares an etcd.")
@click.option(
    "--lease-ttl", default=5, show_default=True, metavar="SECONDS", help="How long a node that hangs keeps its sagas. At least 2."
)
@click.option(
    "--stall-limit",
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    help="The node is NOT_SERVING when sagas wait for it for longer.",
)
@click.option(
    "--keep-done",
    default=7.0,
    show_default=True,
    metavar="DAYS",
    type=click.FloatRange(min=0),
    help="How long sagas are kept that ended done. 0: for ever.",
)
@click.option(
    "--keep-undone",
    default=30.0,
    show_default=True,
    metavar="DAYS",
    type=click.FloatRange(min=0),
    help="How long sagas are kept that ended undone. 0: for ever.",
)
@click.option(
    "--action-server",
    "action_servers",
    multiple=True,
    metavar="HOST:PORT",
    help="An action server that does not register itself. Repeatable.",
)
@click.option(
    "--action-server-ca", type=PEM_FILE, help="PEM file: call action servers over TLS, and trust certificates signed by these."
)
@click.option("--action-server-cert", type=PEM_FILE, help="PEM file: our certificate for action servers.")
@click.option("--action-server-key", type=PEM_FILE, help="PEM file: its key.")
@click.option("--tls-cert", type=PEM_FILE, help="PEM file: serve over TLS with this certificate.")
@click.option("--tls-key", type=PEM_FILE, help="PEM file: its key.")
@click.option("--tls-client-ca", type=PEM_FILE, help="PEM file: clients must show a certificate signed by these.")
@click.option(
    "--peer-ca",
    type=PEM_FILE,
    help="PEM file: with --tls-cert, the certificates of the other SEC nodes are signed by these.  [default: --tls-client-ca]",
)
@click.option(
    "--revoke-on-refused/--no-revoke-on-refused",
    default=True,
    show_default=True,
    help="End the session of an SEC node whose connection broke and whose address refuses new ones, instead of waiting for its lease.",
)
@click.option(
    "--max-payload", default=256 * 1024, show_default=True, metavar="BYTES", help="Bound of params, outputs and constants."
)
@click.option(
    "--max-active",
    default=50_000,
    show_default=True,
    metavar="COUNT",
    help="Active sagas that the node owns before it refuses submits. It still takes over those of others.",
)
@click.option(
    "--max-submits",
    default=2_000,
    show_default=True,
    metavar="COUNT",
    help="Submits and commands in progress before it refuses more.",
)
@click.option(
    "--max-reads",
    default=5_000,
    show_default=True,
    metavar="COUNT",
    help="Reads, waits and watches in progress before it refuses more.",
)
@click.option(
    "--max-waiting",
    default=64 * 1024 * 1024,
    show_default=True,
    metavar="BYTES",
    help="Writes that wait for the store before it refuses submits and commands.",
)
@click.option(
    "--max-calls",
    default=5_000,
    show_default=True,
    metavar="COUNT",
    help="Calls in progress at one action server. Sagas wait when there are more.",
)
@click.option(
    "--metrics-address", default="", metavar="HOST:PORT", help="Serve metrics for Prometheus there, over HTTP.  [default: nowhere]"
)
@click.option(
    "--log-level",
    default="info",
    show_default=True,
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="How much to tell on stderr.",
)
@click.option(
    "--log-format",
    default="text",
    show_default=True,
    type=click.Choice(["text", "json"]),
    help="How to tell it; json: an object each line.",
)
def node(**options: Any) -> None:
    """Runs one SEC node until SIGTERM.

    On SIGTERM the node takes no new sagas, hands those that it owns to the other nodes at once, finishes the calls that it is answering,
    and exits. When it is killed instead, the others notice that its address refuses connections, and take its sagas over at once. When it
    hangs or is cut off, they do when its lease ends (see --lease-ttl).

    It starts without etcd too: it waits, says so in its health (standard gRPC health service), and joins when etcd is there.

    Example, three nodes on one machine:

    \b
        sec node --name a --listen 127.0.0.1:7450 --etcd 127.0.0.1:2379 &
        sec node --name b --listen 127.0.0.1:7451 --etcd 127.0.0.1:2379 &
        sec node --name c --listen 127.0.0.1:7452 --etcd 127.0.0.1:2379 &
        secctl --sec 127.0.0.1:7450,127.0.0.1:7451 node list
    """
    import uvloop

    from sec.api.server import CannotListen
    from sec.node.settings import InvalidSettings
    from sec.run import run_node

    try:
        config = _config(options)
        _set_up_logging(options["log_level"], options["log_format"], config.settings.name)
        uvloop.run(run_node(config))
    except InvalidSettings as error:
        raise click.UsageError("\n".join(error.problems)) from error
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except (CannotListen, OSError) as error:
        raise click.ClickException(str(error)) from error


def _set_up_logging(level: str, form: str, sec_node: str) -> None:
    from sec_client.logs import JsonFormatter

    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(sec_node=sec_node) if form == "json" else logging.Formatter(LOG_FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def _config(options: dict[str, Any]) -> "NodeConfig":
    from sec.core.records import SecNodeName
    from sec.node.settings import Bounds, Limits, Settings
    from sec.run import NodeConfig
    from sec.store.etcd import EtcdConfig

    listen: str = options["listen"]
    _, port = _host_and_port("--listen", listen)
    if options["peer_ca"] and not options["tls_cert"]:
        raise click.UsageError("--peer-ca is for nodes that serve over TLS: give --tls-cert and --tls-key too.")
    name = options["name"] or f"{socket.gethostname()}-{port}"
    settings = Settings(
        name=SecNodeName(name),
        listen=listen,
        advertise=options["advertise"],
        prefix=options["prefix"],
        lease_ttl_s=options["lease_ttl"],
        store_timeout_s=min(3.0, options["lease_ttl"] / 2),
        stall_limit_s=options["stall_limit"],
        keep_done_s=options["keep_done"] * 86_400,
        keep_undone_s=options["keep_undone"] * 86_400,
        action_servers=options["action_servers"],
        revoke_on_refused=options["revoke_on_refused"],
        limits=Limits(payload_bytes=options["max_payload"]),
        bounds=Bounds(
            active=options["max_active"],
            submits=options["max_submits"],
            reads=options["max_reads"],
            waiting_bytes=options["max_waiting"],
            calls=options["max_calls"],
        ),
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
        tls=_tls_files(options, "tls", options["tls_client_ca"]),
        peer_ca=options["peer_ca"],
        action_server_ca=options["action_server_ca"],
        action_server_cert=_tls_files(options, "action_server", None),
        metrics=_host_and_port("--metrics-address", options["metrics_address"]) if options["metrics_address"] else None,
    )


def _host_and_port(option: str, address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and int(port) < 65_536):
        raise click.UsageError(f'{option} "{address}" is not of the form HOST:PORT.')
    return host, int(port)


def _tls_files(options: dict[str, Any], name: str, ca: Path | None) -> "TlsFiles | None":
    from sec.api.server import TlsFiles

    files = pair(options, name)
    return None if files is None else TlsFiles(*files, ca)
