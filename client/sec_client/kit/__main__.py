"""Runs an action server from the command line: `python -m sec_client.kit MODULE:SERVER --listen HOST:PORT --sec ADDRESSES`."""

import argparse
import importlib
import logging
import os
import sys

from sec_client.errors import SagaError
from sec_client.kit.logs import CallFields
from sec_client.kit.server import ActionServer
from sec_client.kit.store import StoreError
from sec_client.logs import JsonFormatter
from sec_client.transport import Tls


def main(arguments: list[str] | None = None) -> int:
    """Serves until SIGTERM or SIGINT. Answers 0, or 2 when the server cannot be loaded or started."""
    parser = argparse.ArgumentParser(
        prog="python -m sec_client.kit",
        description="Serves the actions of an ActionServer until SIGTERM or Ctrl-C.",
        epilog="Example: python -m sec_client.kit inventory:server --listen 0.0.0.0:7070 --sec 10.0.0.1:7450,10.0.0.2:7450",
    )
    parser.add_argument("server", metavar="MODULE:SERVER", help="where the ActionServer is, as in inventory:server")
    parser.add_argument(
        "--listen", default="127.0.0.1:0", metavar="HOST:PORT", help="where to listen; port 0 takes a free one (%(default)s)"
    )
    parser.add_argument(
        "--sec", default=os.environ.get("SEC_ADDRESSES", ""), metavar="ADDR,ADDR", help="SEC nodes to register with (SEC_ADDRESSES)"
    )
    parser.add_argument("--advertise", metavar="HOST[:PORT]", help="where the SEC nodes reach this server, if not where it listens")
    parser.add_argument("--grace", type=float, default=10.0, metavar="SECONDS", help="for calls in hand at the end (%(default)s)")
    for side, what in (("tls", "listening"), ("sec-tls", "calls to the SEC nodes")):
        for part in ("ca", "cert", "key"):
            parser.add_argument(f"--{side}-{part}", metavar="FILE", help=f"TLS for {what}: {part}, a PEM file")
    parser.add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="of what is logged on stderr; json: an object each line (%(default)s)",
    )
    options = parser.parse_args(arguments)
    _set_up_logging(options.log_format)
    try:
        server = load(options.server)
        server.run(
            options.listen,
            sec=options.sec,
            advertise=options.advertise,
            tls=_tls(options.tls_ca, options.tls_cert, options.tls_key),
            sec_tls=_tls(options.sec_tls_ca, options.sec_tls_cert, options.sec_tls_key),
            grace_s=options.grace,
        )
    except (ValueError, OSError, StoreError, SagaError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


def _set_up_logging(form: str) -> None:
    handler = logging.StreamHandler()
    handler.addFilter(CallFields())
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if form == "json" else text)
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def load(target: str) -> ActionServer:
    """The server that "module:name" means, looked for in the current folder too. Raises `ValueError` with a sentence."""
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise ValueError(f'"{target}" does not name a server: write MODULE:SERVER, as in inventory:server.')
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as e:
        raise ValueError(f'The module "{module_name}" cannot be imported: {type(e).__name__}: {e}') from e
    found = getattr(module, name, None)
    if not isinstance(found, ActionServer):
        raise ValueError(f'"{name}" of the module "{module_name}" is {"missing" if found is None else "no ActionServer"}.')
    return found


def _tls(ca: str | None, cert: str | None, key: str | None) -> Tls | None:
    return Tls(ca, cert, key) if ca or cert or key else None


if __name__ == "__main__":
    sys.exit(main())
