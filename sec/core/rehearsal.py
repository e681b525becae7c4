"""Changes that are tried and taken back, and made for good later.

`sec.core.decide` applies records to see where they lead, before they are durable. So while a `Rehearsal` is on, a journal is kept of every change, by
which they are all taken back at its end. When the records are durable, `repeat` makes the changes of the journal once more: that is what applying the records would do,
without judging each of them a second time.
"""

from typing import Any, Self

_MISSING = object()


class Rehearsal:
    """Within it what is applied to a state is tried. At its end all is taken back, and `changes` has it: containers, keys, values before and
    after. It goes from the record that `begins_at` numbers to the one before `ends_at`."""

    __slots__ = ("_state", "begins_at", "changes", "ends_at")

    def __init__(self, state: "Rehearsed") -> None:
        self.begins_at = self.ends_at = state.next_sequence
        self.changes: list[tuple[Any, Any, Any, Any]] = []
        self._state = state

    def __enter__(self) -> Self:
        assert self._state.journal is None, "rehearsals do not nest"
        self._state.journal = self.changes
        return self

    def __exit__(self, *_: object) -> None:
        state = self._state
        state.journal = None
        for container, key, old, _new in reversed(self.changes):
            if old is _MISSING:
                del container[key]
            else:
                container[key] = old
        self.ends_at, state.next_sequence = state.next_sequence, self.begins_at


class Rehearsed:
    """A state that is changed by records with numbers, and by `_put`, `_drop` and `_set` alone. What it has is its attributes, and the dictionaries and lists
    in them."""

    def __init__(self) -> None:
        self.next_sequence = 1
        """The number of the next record."""
        self.journal: list[tuple[Any, Any, Any, Any]] | None = None
        """The changes of the rehearsal that is on. None: none is."""

    def rehearsal(self) -> Rehearsal:
        """Everything applied within it is taken back at the end, however it ends. What it changed can be had again by `repeat`."""
        return Rehearsal(self)

    def repeat(self, rehearsal: Rehearsal) -> None:
        """Takes the records of a rehearsal of this very state, to which nothing was applied since."""
        assert rehearsal.begins_at == self.next_sequence, "something was applied since the rehearsal"
        for container, key, _, new in rehearsal.changes:
            if new is _MISSING:
                del container[key]
            else:
                container[key] = new
        self.next_sequence = rehearsal.ends_at

    def _put(self, container: Any, key: Any, value: Any) -> None:
        journal = self.journal
        if journal is not None:
            old = container.get(key, _MISSING) if type(container) is dict else container[key]
            journal.append((container, key, old, value))
        container[key] = value

    def _drop(self, container: dict[Any, Any], key: Any) -> None:
        old = container.pop(key, _MISSING)
        if old is not _MISSING and self.journal is not None:
            self.journal.append((container, key, old, _MISSING))

    def _set(self, name: str, value: Any) -> None:
        attributes = self.__dict__
        if self.journal is not None:
            self.journal.append((attributes, name, attributes[name], value))
        attributes[name] = value
