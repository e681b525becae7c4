"""Exit codes, and how an error is said."""

from typing import IO, Any, NoReturn

import click
from sec_client import (
    ClusterUnavailable,
    InvalidArgument,
    Overloaded,
    SagaCorrupt,
    SagaError,
    SagaState,
    WaitTimeout,
)

OK = 0
NOT_DONE = 1
BAD_INPUT = 2
UNAVAILABLE = 3
STUCK = 4
REFUSED = 5
TIMED_OUT = 6
INTERRUPTED = 130

EXIT_CODES = """\b
Exit codes:
  0    it worked; of a wait: the saga is done; of a conformance run: no clause is broken
  1    of a wait: the saga failed, and all of its effects were undone; of a conformance run: a clause is broken
  2    bad usage, a file that cannot be read, a definition that is not valid
  3    no SEC node, or no action server, could be reached, their store is away, or none has room
  4    of a wait: the saga is stuck and needs an operator; or its log is corrupt
  5    the cluster refused: no such saga, another saga has this id, wrong state
  6    of a wait: the time was over before the saga settled
  130  interrupted by Ctrl-C"""


class BadInput(click.ClickException):
    """What the user gave cannot be used. Ends with exit code 2."""

    exit_code = BAD_INPUT

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"error: {self.format_message()}", err=True)


def exit_code_of(error: SagaError) -> int:
    match error:
        case ClusterUnavailable() | Overloaded():
            return UNAVAILABLE
        case SagaCorrupt():
            return STUCK
        case WaitTimeout():
            return TIMED_OUT
        case InvalidArgument():
            return BAD_INPUT
        case _ if error.code == "bad_tls":
            return BAD_INPUT
        case _:
            return REFUSED


def exit_code_of_state(state: SagaState) -> int:
    """For a wait that ended with the saga in this state."""
    match state:
        case SagaState.DONE:
            return OK
        case SagaState.STUCK | SagaState.CORRUPT:
            return STUCK
        case _:
            return NOT_DONE


def error_text(error: SagaError) -> str:
    """One sentence, each problem on a line of its own, and what to do next."""
    lines = [f"error: {error.message}"]
    if len(error.problems) > 1:
        lines = [f"error: The definition of the saga has {len(error.problems)} problems:"]
        lines += [f"  - {problem}" for problem in error.problems]
    if error.hint:
        lines.append(f"hint: {error.hint}")
    return "\n".join(lines)


def fail(error: SagaError) -> NoReturn:
    """Says the error on stderr and ends the program."""
    click.echo(error_text(error), err=True)
    raise SystemExit(exit_code_of(error))
