"""Where sagas, params and labels come from: files, modules and the command line. Raises `BadInput` with a sentence, never anything else."""

import importlib
import json
import os
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from sec_client import Definition, DefinitionError, Payload, Saga
from sec_model.document import definition_from_document

from secctl.errors import BadInput

MAX_FILE_BYTES = 16 * 1024 * 1024
"""Of a file with a saga or params: far above what a cluster takes."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_SUFFIXES = (".yaml", ".yml", ".json")


def load_saga(source: str) -> Definition:
    """The saga that `source` means: a YAML or JSON file, or MODULE:OBJECT."""
    if source.endswith(_SUFFIXES) or os.path.exists(source):
        return _from_file(source)
    module, separator, name = source.partition(":")
    if separator and name and all(part.isidentifier() for part in module.split(".")):
        return _from_module(module, name)
    raise BadInput(f'"{source}" is neither a file nor MODULE:OBJECT (as in "trips:booking").')


def load_json(text: str | None, option: str) -> Any:
    """The JSON value in `text`, or in the file that is named behind an "@" ("@-" and "-" are stdin). None without text."""
    if text is None:
        return None
    where = option
    if text in ("-", "@-"):
        where, text = f"the stdin for {option}", sys.stdin.read()
    elif text.startswith("@"):
        where, text = f'the file "{text[1:]}"', _read(text[1:])
    try:
        value = json.loads(text)
        Payload.json(value)
    except ValueError as e:
        raise BadInput(f"What is in {where} is not JSON: {e}.") from None
    return value


def parse_time_s(text: str) -> float:
    """How long, in seconds: "90", "90s", "10m", "1.5h", "2d"."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    time_s = 0.0 if found is None else float(found[1]) * _UNITS_S[found[2]]
    if time_s <= 0:
        raise BadInput(f'"{text}" is not a time above 0: write a number with its unit, as in 90s, 10m, 1.5h or 2d.')
    return time_s


def parse_instant_us(text: str) -> int:
    """An instant as ISO 8601 has it, with its time zone, in microseconds since 1970."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        instant = None
    if instant is None or instant.tzinfo is None or instant <= _EPOCH:
        raise BadInput(f'"{text}" is not an instant: write it with its time zone, as in 2030-01-01T09:00:00Z.')
    return (instant - _EPOCH) // timedelta(microseconds=1)


def parse_labels(labels: tuple[str, ...]) -> dict[str, str]:
    """Labels out of texts "key=value"."""
    found: dict[str, str] = {}
    for label in labels:
        key, separator, value = label.partition("=")
        if not separator or not key:
            raise BadInput(f'"{label}" is not a label: write key=value.')
        if found.get(key, value) != value:
            raise BadInput(f'The label "{key}" is given twice.')
        found[key] = value
    return found


def _from_file(path: str) -> Definition:
    text = _read(path)
    try:
        document = json.loads(text) if path.endswith(".json") else yaml.safe_load(text)
    except json.JSONDecodeError as e:
        raise BadInput(f'"{path}" is not JSON: {e.msg} in line {e.lineno}, column {e.colno}.') from None
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise BadInput(f'"{path}" is not YAML: {e.problem or e.context or "something is wrong"}{where}.') from None
    except (yaml.YAMLError, ValueError) as e:
        raise BadInput(f'"{path}" cannot be read: {" ".join(str(e).split())}') from None
    except RecursionError:
        raise BadInput(f'"{path}" is nested too deep.') from None
    try:
        return definition_from_document(document)
    except DefinitionError as e:
        raise BadInput(problems_text(f'"{path}" is not a valid saga', e.problems)) from None
    except (TypeError, ValueError) as e:
        raise BadInput(f'"{path}" is not a valid saga: {e}.') from None
    except RecursionError:
        raise BadInput(f'"{path}" is nested too deep.') from None


def _from_module(module_name: str, name: str) -> Definition:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as e:
        missing = "There is no module" if e.name == module_name else f'"{module_name}" needs the missing module'
        raise BadInput(f'{missing} "{e.name}" (looked for in the current folder too).') from None
    except Exception as e:
        raise BadInput(f'The module "{module_name}" cannot be imported: {type(e).__name__}: {e}') from None
    for part in name.split("."):
        if not hasattr(found, part):
            raise BadInput(f'The module "{module_name}" has no "{name}".')
        found = getattr(found, part)
    try:
        if callable(found) and not isinstance(found, Saga | Definition):
            found = found()
        if isinstance(found, Saga):
            return found.build()
    except DefinitionError as e:
        raise BadInput(problems_text(f'"{module_name}:{name}" is not a valid saga', e.problems)) from None
    except Exception as e:
        raise BadInput(f'"{module_name}:{name}" cannot be called: {type(e).__name__}: {e}') from None
    if not isinstance(found, Definition):
        raise BadInput(
            f'"{module_name}:{name}" is of type {type(found).__name__}; it must be a Saga, a Definition, or a function that returns one.'
        )
    return found


def problems_text(what: str, problems: tuple[str, ...]) -> str:
    if len(problems) == 1:
        return f"{what}: {problems[0]}"
    return f"{what}; it has {len(problems)} problems:\n" + "\n".join(f"  - {p}" for p in problems)


def _read(path: str) -> str:
    try:
        file = Path(path)
        if file.stat().st_size > MAX_FILE_BYTES:
            raise BadInput(f'"{path}" is larger than {MAX_FILE_BYTES} bytes.')
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise BadInput(f'"{path}" is not a text file in UTF-8.') from None
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        raise BadInput(f'"{path}" cannot be read: {reason}.') from None
