"""The commands of `secctl node` and `secctl action`."""

import click
from rich.text import Text

from secctl import render, shapes
from secctl.errors import BadInput
from secctl.settings import Settings, common


@click.group()
def node() -> None:
    """Look at the SEC nodes of the cluster, and drain them."""


@node.command("list")
@common
def list_nodes(settings: Settings) -> None:
    """List the SEC nodes that hold a session now.

    The asterisk marks the one that answered.

    \b
    Example:
      secctl node list
    """
    with settings.client() as client:
        found = client.nodes()
    settings.show(render.nodes(found), shapes.nodes(found))


@node.command()
@common
@click.argument("name")
@click.option("--undo", is_flag=True, help="Take the drain back.")
def drain(settings: Settings, name: str, undo: bool) -> None:
    """Let an SEC node hand its sagas to the others and take no new ones.

    It goes on answering calls, and can then be stopped without any saga noticing. The drain is recorded when this command ends; watch
    `secctl node list` until the node owns no sagas.

    \b
    Examples:
      secctl node drain sec-2
      secctl node drain sec-2 --undo
    """
    with settings.client() as client:
        client.drain(name, undo=undo)
    settings.show(
        Text(f'SEC node "{name}" {"takes sagas again" if undo else "is draining"}.\n'), {"node": name, "draining": not undo}
    )


@click.group()
def action() -> None:
    """Look at the actions that action servers offer."""


@action.command("list")
@common
def list_actions(settings: Settings) -> None:
    """List the actions that are offered now, and by which action servers.

    \b
    Example:
      secctl action list
    """
    with settings.client() as client:
        found = client.actions()
    settings.show(render.actions(found), {"actions": [shapes.action(a) for a in found]})


@action.command()
@common
@click.argument("name")
def show(settings: Settings, name: str) -> None:
    """Show what an action takes and answers, as JSON Schema, as far as its action servers describe it.

    Where they describe it in different ways, as in a rolling update, each of them is shown.

    \b
    Example:
      secctl action show book_hotel
    """
    with settings.client() as client:
        found = next((a for a in client.actions() if a.name == name), None)
    if found is None:
        raise BadInput(f'No action server offers the action "{name}". "secctl action list" shows what is offered.')
    settings.show(render.action(found), shapes.action(found))
