"""The commands of `secctl saga` that steer sagas: one, several, or all that match a filter."""

import getpass
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click
from rich.text import Text
from sec_client import Client, OnDeadline, Payload, SagaError, SagaState, new_saga_id
from sec_model.commands import (
    Abort,
    Command,
    InjectError,
    InjectRepeat,
    MarkUndone,
    NodePath,
    Pause,
    Phase,
    Resume,
    RetryUndo,
    SetBreakpoint,
    SetDeadline,
    SetMaxInFlight,
    Signal,
    SkipUndo,
    Step,
)

from secctl.errors import BadInput, exit_code_of
from secctl.settings import Settings, common
from secctl.sources import load_json, parse_instant_us, parse_labels, parse_time_s

F = TypeVar("F", bound=Callable[..., Any])

_ACTIVE = (SagaState.RUNNING, SagaState.UNWINDING, SagaState.STUCK)
"""What a filter without a state means. Those not started take commands too, but have to be asked for."""

_ENDED = (SagaState.DONE, SagaState.UNDONE)
"""The same when sagas are deleted."""


def _to_sagas(states: Sequence[SagaState]) -> Callable[[F], F]:
    """The arguments of a command that can be given to several sagas, in one of these states."""

    def decorated(function: F) -> F:
        for decorate in (
            click.option("--yes", is_flag=True, help="With a filter: do not ask."),
            click.option(
                "--state",
                "states",
                type=click.Choice([s.value for s in states]),
                multiple=True,
                help="Filter: any of these states.",
            ),
            click.option("--name", default="", help="Filter: the name of the definition."),
            click.option(
                "--label", "labels", metavar="KEY=VALUE", multiple=True, help="Filter: all of these labels. May be repeated."
            ),
            click.argument("saga_ids", metavar="[SAGA]...", nargs=-1),
        ):
            function = decorate(function)
        return function

    return decorated


_many = _to_sagas((SagaState.CREATED, *_ACTIVE))


def _give(settings: Settings, command: Command, **to: Any) -> None:
    """Gives a command to each of the sagas, and says of each what became of it."""
    with settings.client() as client:
        wanted = _wanted(client, f"{type(command).__name__} would be given to", _ACTIVE, **to)
        given, kept, refused = _give_each(client, command, wanted)
    lines = [f'Saga "{saga_id}" has taken it up.\n' for saga_id in given]
    lines += [f'Saga "{saga_id}" takes it up when it is started.\n' for saga_id in kept]
    settings.show(
        Text("".join(lines)), {"given": given, "kept": kept, "refused": {saga_id: str(error) for saga_id, error in refused.items()}}
    )
    _end(refused)


def _end(refused: Mapping[str, SagaError]) -> None:
    """Says what was refused, and ends with the worst of the exit codes."""
    for error in refused.values():
        click.echo(f"error: {error}", err=True)
    if refused:
        raise click.exceptions.Exit(max(exit_code_of(error) for error in refused.values()))


def _wanted(
    client: Client,
    what: str,
    default_states: Sequence[SagaState],
    *,
    saga_ids: Sequence[str],
    labels: Sequence[str],
    name: str,
    states: Sequence[str],
    yes: bool,
) -> list[str]:
    """The sagas that are named; or those that match the filter, when the user, who is shown `what` would happen to which, agrees."""
    filtered = bool(labels or name or states)
    if filtered == bool(saga_ids):
        raise BadInput("Name the sagas, or give a filter (--label, --name, --state): one of the two.")
    if not filtered:
        return list(saga_ids)
    found = client.list(states=states or default_states, name=name, labels=parse_labels(tuple(labels)))
    wanted = [summary.saga_id for summary in found]
    click.echo(f"{what} {len(wanted)} sagas: {', '.join(wanted[:20])}{', …' if len(wanted) > 20 else ''}", err=True)
    if wanted and not yes:
        click.confirm("Go on?", abort=True, err=True)
    return wanted


def _give_each(client: Client, command: Command, wanted: Sequence[str]) -> tuple[list[str], list[str], dict[str, SagaError]]:
    """Which sagas have taken the command up, which keep it until they are started, and which refuse it."""
    given: list[str] = []
    kept: list[str] = []
    refused: dict[str, SagaError] = {}
    for saga_id in wanted:
        try:
            command_id = client.command(saga_id, command, by=getpass.getuser(), command_id=new_saga_id())
            if client.get(saga_id, outputs=False).state is SagaState.CREATED:
                kept.append(saga_id)
                continue
            client.taken_up(saga_id, command_id)
        except SagaError as error:
            refused[saga_id] = error
        else:
            given.append(saga_id)
    return given, kept, refused


@click.command()
@common
@click.option("--reason", default="", help="Kept in the log, and shown.")
@_many
def pause(settings: Settings, reason: str, **to: Any) -> None:
    """Pause sagas: nothing new is dispatched, retries included.

    Calls under way are left alone, and their outcomes are recorded.

    \b
    Examples:
      secctl saga pause trip-4711 --reason "the payment service is being moved"
      secctl saga pause --label team=storage
    """
    _give(settings, Pause(reason), **to)


@click.command()
@common
@_many
def resume(settings: Settings, **to: Any) -> None:
    """Let paused sagas go on.

    \b
    Examples:
      secctl saga resume trip-4711
      secctl saga resume --label team=storage --yes
    """
    _give(settings, Resume(), **to)


@click.command()
@common
@click.option("--reason", default="", help="Kept in the log, and shown.")
@_many
def abort(settings: Settings, reason: str, **to: Any) -> None:
    """Stop sagas from going forward, and unwind them.

    What is under way is waited for; then every effect is undone. A pause ends with it.

    \b
    Example:
      secctl saga abort trip-4711 --reason "the guest has changed her mind"
    """
    _give(settings, Abort(reason), **to)


@click.command()
@common
@_many
def step(settings: Settings, **to: Any) -> None:
    """Start one node of a paused saga.

    While it unwinds: one undo action. Then the pause goes on.

    \b
    Example:
      secctl saga pause trip-4711 && secctl saga step trip-4711
    """
    _give(settings, Step(), **to)


@click.command("break")
@common
@click.option("--node", required=True, metavar="PATH", help="Full path of the node.")
@click.option("--after", is_flag=True, help="After it has succeeded. Otherwise before it starts.")
@click.option("--clear", is_flag=True, help="Take the breakpoint away.")
@_many
def break_(settings: Settings, node: str, after: bool, clear: bool, **to: Any) -> None:
    """Set a breakpoint: the saga is paused when it is reached.

    \b
    Examples:
      secctl saga break trip-4711 --node payment
      secctl saga break trip-4711 --node hotel --after
    """
    _give(settings, SetBreakpoint(NodePath(node), after, clear), **to)


@click.command()
@common
@click.option("--max-in-flight", "most", required=True, type=click.IntRange(min=0), help="0 takes the limit away.")
@_many
def limit(settings: Settings, most: int, **to: Any) -> None:
    """Bound how many nodes of a saga are in flight at a time.

    \b
    Example:
      secctl saga limit import-17 --max-in-flight 4
    """
    _give(settings, SetMaxInFlight(most), **to)


@click.command()
@common
@click.option("--node", required=True, metavar="PATH", help="Full path of the node that waits for it.")
@click.option(
    "--data", default="null", metavar="JSON|@FILE|-", help="The output of the node; - reads it from stdin. Default: null."
)
@_many
def signal(settings: Settings, node: str, data: str, **to: Any) -> None:
    """Send the event that a signal node waits for.

    It may come before the saga has reached the node. A node takes one signal.

    \b
    Examples:
      secctl saga signal order-17 --node approval --data '{"by": "Ada"}'
      secctl saga signal --label day=friday --node doors_open
    """
    _give(settings, Signal(NodePath(node), Payload.json(load_json(data, "--data"))), **to)


@click.command()
@common
@click.option("--node", default="", metavar="PATH", help="Full path of a node. Otherwise it is the deadline of the saga.")
@click.option("--after", metavar="TIME", help="So long from now, as in 90s, 10m, 1.5h or 2d.")
@click.option("--at", metavar="INSTANT", help="At this instant, as in 2030-01-01T09:00:00Z.")
@click.option("--none", "never", is_flag=True, help="Take the deadline away.")
@click.option(
    "--then", type=click.Choice([then.value for then in OnDeadline]), default="fail", show_default=True,
    help="What happens then: the saga unwinds, or it is paused.",
)  # fmt: skip
@_many
def deadline(settings: Settings, node: str, after: str | None, at: str | None, never: bool, then: str, **to: Any) -> None:
    """Give sagas, or a node of each, another deadline, or none.

    A node's deadline may be set before the node starts; it then stays as it was set.

    \b
    Examples:
      secctl saga deadline order-17 --after 2h
      secctl saga deadline order-17 --node approval --at 2030-01-01T09:00:00Z --then pause
      secctl saga deadline --label team=storage --none
    """
    if [after is not None, at is not None, never].count(True) != 1:
        raise BadInput("Give one of --after, --at and --none.")
    path, consequence = NodePath(node), OnDeadline(then)
    if after is not None:
        command = SetDeadline(path, consequence, after_s=parse_time_s(after))
    elif at is not None:
        command = SetDeadline(path, consequence, due_us=parse_instant_us(at))
    else:
        command = SetDeadline(path, consequence)
    _give(settings, command, **to)


@click.command("retry-undo")
@common
@click.option("--node", required=True, metavar="PATH", help="Full path of the node whose undo failed.")
@_many
def retry_undo(settings: Settings, node: str, **to: Any) -> None:
    """Try a failed undo again, under a fresh retry policy.

    \b
    Examples:
      secctl saga retry-undo trip-4711 --node hotel
      secctl saga retry-undo --state stuck --label team=travel --node hotel
    """
    _give(settings, RetryUndo(NodePath(node)), **to)


@click.command("skip-undo")
@common
@click.option("--node", required=True, metavar="PATH", help="Full path of the node whose undo failed.")
@click.option("--reason", required=True, help="Why its effect may stay in the world; kept in the log.")
@_many
def skip_undo(settings: Settings, node: str, reason: str, **to: Any) -> None:
    """Give up a failed undo: the effect stays in the world, and the unwinding goes on.

    \b
    Example:
      secctl saga skip-undo trip-4711 --node hotel --reason "the hotel has closed down"
    """
    _give(settings, SkipUndo(NodePath(node), reason), **to)


@click.command("mark-undone")
@common
@click.option("--node", required=True, metavar="PATH", help="Full path of the node whose undo failed.")
@click.option("--reason", required=True, help="Who took its effect back, and how; kept in the log.")
@_many
def mark_undone(settings: Settings, node: str, reason: str, **to: Any) -> None:
    """Say that the effect of a failed undo is gone: somebody took it back by hand.

    \b
    Example:
      secctl saga mark-undone trip-4711 --node hotel --reason "given back by phone on 3 May"
    """
    _give(settings, MarkUndone(NodePath(node), reason), **to)


@click.command()
@common
@click.option("--node", required=True, metavar="PATH", help="Full path of the node.")
@click.option("--undo", is_flag=True, help="At its undo action. Otherwise at its action.")
@click.option("--error", "what", flag_value="error", help="Let the call fail without making it.")
@click.option("--repeat", type=click.IntRange(1, 100), help="Make the call so many times, with the same key.")
@_many
def inject(settings: Settings, node: str, undo: bool, what: str | None, repeat: int | None, **to: Any) -> None:
    """For tests: let a call that is still to come fail, or be made several times.

    \b
    Examples:
      secctl saga inject trip-4711 --node payment --error
      secctl saga inject trip-4711 --node hotel --undo --repeat 3
    """
    if (what is None) == (repeat is None):
        raise BadInput("Give --error or --repeat.")
    path, phase = NodePath(node), Phase.UNDO if undo else Phase.DO
    _give(settings, InjectError(path, phase) if repeat is None else InjectRepeat(path, phase, repeat), **to)


@click.command()
@common
@_to_sagas((SagaState.CREATED, *_ENDED))
def delete(settings: Settings, **to: Any) -> None:
    """Delete sagas that have ended, or were never started: all of them, for good.

    The cluster does this by itself some days after their end. A filter without --state means those that have ended.

    
    Examples:
      secctl saga delete trip-4711
      secctl saga delete --label team=storage --state undone
    """
    deleted: list[str] = []
    refused: dict[str, SagaError] = {}
    with settings.client() as client:
        for saga_id in _wanted(client, "Deleted, for good, would be", _ENDED, **to):
            try:
                client.delete(saga_id)
            except SagaError as error:
                refused[saga_id] = error
            else:
                deleted.append(saga_id)
    lines = "".join(f'Saga "{saga_id}" is deleted.\n' for saga_id in deleted)
    settings.show(Text(lines), {"deleted": deleted, "refused": {saga_id: str(error) for saga_id, error in refused.items()}})
    _end(refused)


COMMANDS = (pause, resume, abort, step, break_, limit, signal, deadline, retry_undo, skip_undo, mark_undone, inject)
"""What `secctl saga` offers beside the commands of `secctl.sagas`."""
