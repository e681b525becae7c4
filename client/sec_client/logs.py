"""Log lines for programs: a JSON object each."""

import json
import logging
from datetime import UTC, datetime

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What every record has. All else was given as `extra`, or by a filter."""


class JsonFormatter(logging.Formatter):
    """`time` (UTC), `level`, `logger`, `message`, an `exception` where there is one, and what else the record carries: the fields given as `extra`, those
    of a filter such as `sec_client.kit.CallFields`, and `always`, which is in every line. A value that JSON has not is written as text."""

    def __init__(self, **always: str) -> None:
        super().__init__()
        self._always = always

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._always,
            **{name: value for name, value in vars(record).items() if name not in _OWN},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        return json.dumps(line, default=str, skipkeys=True)
