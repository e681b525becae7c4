"""The actions that an action server offers: what the decorators collect."""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from sec_client.kit.call import Call

Handler = Callable[[Call], Any]
"""A plain function, called on a thread, or an async one, called on the event loop."""
H = TypeVar("H", bound=Handler)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}")


class Missing:
    """No undo was declared, neither a function nor None."""


MISSING = Missing()


class Action:
    """An action with its undo. Made by `ActionServer.action`; callable like the function it was made of."""

    def __init__(self, name: str, summary: str, do: Handler, undo: Handler | Missing | None) -> None:
        self.name = name
        self.summary = summary
        self.do = do
        self._undo = undo

    def __call__(self, call: Call) -> Any:
        return self.do(call)

    def undo(self, handler: H) -> H:
        """Decorates the undo action. It gets the same call, with what the action answered as `output`, where that is known.

        It runs after an action of which it is not known how far it came, so it must cope with one that did nothing. Its value is not used.
        """
        if not isinstance(self._undo, Missing):
            raise ValueError(f'The action "{self.name}" has an undo already.')
        self._undo = handler
        return handler

    @property
    def undo_declared(self) -> bool:
        return not isinstance(self._undo, Missing)

    @property
    def undo_handler(self) -> Handler | None:
        """None: nothing needs to be undone."""
        return None if isinstance(self._undo, Missing) else self._undo


class Actions:
    """Actions by name. `action` and `undo` are the decorators that an `ActionServer` has too."""

    def __init__(self) -> None:
        self._by_name: dict[str, Action] = {}

    def action(
        self, name: str | None = None, *, summary: str = "", undo: Handler | Missing | None = MISSING
    ) -> Callable[[Handler], Action]:
        """Decorates a function `(call: Call) -> value` as an action.

        `name` is the function's by default, `summary` the first line of its docstring. The undo is decorated with `.undo` of the result or given as
        `undo`; `undo=None` says that nothing needs to be undone. The value is JSON, bytes or a `Payload`. Raises `ValueError` for a name
        that is not valid or is taken.
        """

        def decorate(handler: Handler) -> Action:
            chosen = name or str(getattr(handler, "__name__", ""))
            if not _NAME.fullmatch(chosen):
                raise ValueError(f'"{chosen}" cannot name an action: use letters, digits, ".", "_", "-" and "@", at most 128.')
            if chosen in self._by_name:
                raise ValueError(f'The action "{chosen}" is declared twice.')
            line = summary or (inspect.getdoc(handler) or "").partition("\n")[0]
            made = self._by_name[chosen] = Action(chosen, line, handler, undo)
            return made

        return decorate

    def check(self) -> None:
        """Raises `ValueError` when there are no actions, or some of which it was not said how they are undone."""
        if not self._by_name:
            raise ValueError("The action server has no actions: decorate functions with @server.action().")
        missing = [a.name for a in self._by_name.values() if not a.undo_declared]
        if missing:
            listed = ", ".join(f'"{name}"' for name in missing)
            raise ValueError(
                f"It is not declared how these actions are undone: {listed}. Decorate a function with .undo, "
                "or declare undo=None where nothing needs to be undone."
            )

    @property
    def by_name(self) -> Mapping[str, Action]:
        return self._by_name
