"""Which call a line of the log belongs to."""

import logging
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

_fields: ContextVar[Mapping[str, Any] | None] = ContextVar("sec_client.kit.call_fields", default=None)


class CallFields(logging.Filter):
    """Puts into each record that is logged within a handler, by whatever logger, which call it belongs to: `saga_id`, `node`, `action`, `phase`,
    `attempt`, and `trace_id` where the saga has one. What a record has already stays. Lets every record through.

    Belongs to a handler of `logging`, and not to a logger: `logging.getLogger().handlers[0].addFilter(CallFields())`.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        for name, value in (_fields.get() or {}).items():
            if name not in vars(record):
                setattr(record, name, value)
        return True


class logged_as:  # noqa: N801 # used like a function
    """What `CallFields` adds, in this context and in what is copied of it: the threads of handlers, and tasks that they make."""

    __slots__ = ("_fields", "_token")

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields

    def __enter__(self) -> None:
        self._token = _fields.set(self._fields)

    def __exit__(self, *_: object) -> None:
        _fields.reset(self._token)
