"""`sec health`: asks a process how it is. Probes start it every few seconds, so it imports next to nothing."""

import sys
from typing import Any

import click
import grpc
from grpc_health.v1 import health_pb2

from sec.cli.tls import PEM_FILE, pair

COORDINATOR_SERVICE = "sec.v1.Coordinator"


@click.command()
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
@click.option("--tls-ca", type=PEM_FILE, help="PEM file: speak TLS, and trust certificates signed by these.")
@click.option("--tls-cert", type=PEM_FILE, help="PEM file: our certificate, where the other side asks for one.")
@click.option("--tls-key", type=PEM_FILE, help="PEM file: its key.")
@click.option("--tls-name", metavar="NAME", help="The name that its certificate must have.  [default: HOST]")
def health(address: str, service: str, timeout: float, live: bool, tls_name: str | None, **tls: Any) -> None:
    """Asks an SEC node at HOST:PORT how it is, by the standard gRPC health service. The default is 127.0.0.1:7450.

    It prints one line, and its exit code says the same:

    \b
        0  SERVING: it holds a session, takes sagas, and brings them forward
        1  NOT_SERVING: it has no session (etcd is away), is drained, stops, or lets sagas wait for too long (the node's log says
           which, and so does `secctl node list`, asked there); or SERVICE_UNKNOWN: it has no such service
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
    ours = pair(tls, "tls")
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
        cert, key = (None, None) if ours is None else (file.read_bytes() for file in ours)
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
