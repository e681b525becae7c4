"""The options that name PEM files, which several commands have."""

from pathlib import Path
from typing import Any

import click

PEM_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def pair(options: dict[str, Any], name: str) -> tuple[Path, Path] | None:
    """The certificate and its key. Raises `click.UsageError` when only one of them is given."""
    cert, key = options[f"{name}_cert"], options[f"{name}_key"]
    flag = name.replace("_", "-")
    if (cert is None) != (key is None):
        raise click.UsageError(f"--{flag}-cert and --{flag}-key go together: give both or none.")
    return None if cert is None else (cert, key)
