"""What every command shares: where the cluster is, how to print, and how errors end the program."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.text import Text
from sec_client import Client, SagaError, Tls, aio

from secctl import shapes
from secctl.errors import INTERRUPTED, BadInput, fail

DEFAULT_ADDRESSES = "127.0.0.1:7450"
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Settings:
    """From the options of the program; a command may have its own `--sec` and `--output`."""

    sec: str = DEFAULT_ADDRESSES
    output: str = "text"
    tls: Tls | None = None
    metadata: tuple[tuple[str, str], ...] = ()
    timeout_s: float = 15.0
    console: Console = field(default_factory=Console)

    @property
    def json(self) -> bool:
        return self.output == "json"

    def client(self) -> Client:
        """Raises `BadInput` for a bad address."""
        try:
            return Client(self.sec, tls=self.tls, metadata=self.metadata, timeout_s=self.timeout_s)
        except ValueError as e:
            raise BadInput(str(e)) from None

    def aio_client(self) -> aio.Client:
        """Raises `BadInput` for a bad address."""
        try:
            return aio.Client(self.sec, tls=self.tls, metadata=self.metadata, timeout_s=self.timeout_s)
        except ValueError as e:
            raise BadInput(str(e)) from None

    def show(self, text: Text, shape: Any) -> None:
        """Prints one of the two."""
        if self.json:
            click.echo(shapes.text(shape))
        else:
            self.console.print(text, soft_wrap=True, end="")

    def line(self, text: Text, shape: Any) -> None:
        """Prints one of the two on one line, at once."""
        if self.json:
            click.echo(shapes.text(shape, line=True))
        else:
            self.console.print(text, soft_wrap=True)
        sys.stdout.flush()


class Program(click.Group):
    """A group whose commands end with a sentence and an exit code, whatever goes wrong."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SagaError as e:
            fail(e)
        except KeyboardInterrupt:
            click.echo("interrupted; what was sent to the cluster stays", err=True)
            ctx.exit(INTERRUPTED)


def new_console() -> Console:
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False)


_sec = click.option("--sec", metavar="ADDR,ADDR", help="SEC nodes to ask, as host:port. Overrides the one of the program.")
_output = click.option(
    "--output", "-o", "printed_as", type=click.Choice(["text", "json"]), help="How to print. Overrides the one of the program."
)


def common(command: F) -> F:
    """Gives a command the options `--sec` and `--output`, and passes it its `Settings` as the first argument."""
    return _sec(_output(_with_settings(command)))


def connected(command: F) -> F:
    """As `common`, but without `--output`: for a command that means something else by it."""
    return _sec(_with_settings(command))


def _with_settings(command: F) -> F:
    @click.pass_context
    def with_settings(ctx: click.Context, /, sec: str | None, printed_as: str | None = None, **options: Any) -> Any:
        settings = ctx.find_object(Settings) or Settings()
        settings = replace(settings, console=new_console())
        if sec:
            settings = replace(settings, sec=sec)
        if printed_as:
            settings = replace(settings, output=printed_as)
        return command(settings, **options)

    with_settings.__name__ = command.__name__
    with_settings.__doc__ = command.__doc__
    # Options declared below this decorator were put on the inner function.
    with_settings.__click_params__ = [*getattr(command, "__click_params__", [])]  # type: ignore[attr-defined] # click's own way
    return with_settings  # type: ignore[return-value] # called by click, by names
