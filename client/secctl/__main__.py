"""The command-line client of a cluster."""

import io
import sys

import click
from sec_client import Tls

from secctl import controls
from secctl.cluster import action, node
from secctl.conformance.command import conformance
from secctl.errors import EXIT_CODES, BadInput
from secctl.sagas import saga
from secctl.settings import DEFAULT_ADDRESSES, Program, Settings, new_console


@click.group(cls=Program, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option(
    "--sec", envvar="SEC_ADDRESSES", default=DEFAULT_ADDRESSES, show_default=True, show_envvar=True, metavar="ADDR,ADDR",
    help="SEC nodes to ask, as host:port. The next one is asked when one does not answer.",
)  # fmt: skip
@click.option("--output", "-o", type=click.Choice(["text", "json"]), default="text", show_default=True, help="How to print.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0.1), default=15.0, show_default=True, metavar="SECONDS",
              help="For one call with all of its repetitions. Waiting for a saga is not bounded by it.")  # fmt: skip
@click.option("--tls", is_flag=True, help="Use TLS, with the system's certificate authorities unless --tls-ca is given.")
@click.option(
    "--tls-ca", envvar="SEC_TLS_CA", show_envvar=True, metavar="FILE", help="Certificate authority of the SEC nodes (PEM)."
)
@click.option("--tls-cert", envvar="SEC_TLS_CERT", show_envvar=True, metavar="FILE", help="Certificate to show to them (PEM).")
@click.option("--tls-key", envvar="SEC_TLS_KEY", show_envvar=True, metavar="FILE", help="Key of that certificate (PEM).")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="gRPC metadata for every call. May be repeated.")
@click.pass_context
def cli(
    ctx: click.Context,
    sec: str,
    output: str,
    timeout_s: float,
    tls: bool,
    tls_ca: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    metadata: tuple[str, ...],
) -> None:
    """Submit and watch sagas, and look after the cluster that runs them.

    A saga is a graph of actions, each with an undo action. The cluster runs it to one of two ends: all of its actions took effect, or every
    effect was undone.

    \b
    Examples:
      secctl saga submit trip.yaml --wait
      secctl --sec 10.0.0.1:7450,10.0.0.2:7450 saga list
      secctl saga get trip-4711
    """
    pairs = []
    for item in metadata:
        key, separator, value = item.partition("=")
        if not separator or not key:
            raise BadInput(f'"{item}" is not metadata: write key=value.')
        pairs.append((key.lower(), value))
    use_tls = tls or any((tls_ca, tls_cert, tls_key))
    ctx.obj = Settings(
        sec=sec,
        output=output,
        tls=Tls(tls_ca, tls_cert, tls_key) if use_tls else None,
        metadata=tuple(pairs),
        timeout_s=timeout_s,
        console=new_console(),
    )


for control in (*controls.COMMANDS, controls.delete):
    saga.add_command(control)
cli.add_command(saga)
cli.add_command(node)
cli.add_command(action)
cli.add_command(conformance)


def main() -> None:
    """The entry point of the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character is no reason to fail
    cli(prog_name="secctl")


if __name__ == "__main__":
    main()
