"""What is known about versions of etcd that matters to whoever keeps a saga log in one."""

import re

_NUMBERS = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")


def parse_version(version: str) -> tuple[int, int, int]:
    """ "3.5.1" → (3, 5, 1). A suffix such as "-rc.1" is ignored. Raises `ValueError` for what is no version."""
    match = _NUMBERS.match(version.removeprefix("v"))
    if match is None:
        raise ValueError(f"{version!r} is not a version of etcd.")
    major, minor, patch = match.groups()
    return int(major), int(minor), int(patch or 0)


def known_defect(version: str) -> str | None:
    """A sentence to warn with when a server of this version can lose what it acknowledged, else None.

    Source: the postmortem "v3.5 data inconsistency" of the etcd project (3.5.0 to 3.5.2).
    """
    try:
        numbers = parse_version(version)
    except ValueError:
        return None
    if (3, 5, 0) <= numbers <= (3, 5, 2):
        return (
            f"etcd {version} can lose acknowledged data when it is killed under load (etcd 3.5.0 to 3.5.2 are affected); "
            "use 3.5.6 or later, 3.6, or 3.4.22 or later in production."
        )
    return None


def sound(version: str) -> bool:
    """Whether a version is fit to keep a saga log in while members of etcd are killed: 3.4.22+, 3.5.6+, 3.6 and later."""
    try:
        numbers = parse_version(version)
    except ValueError:
        return False
    return numbers >= (3, 5, 6) or (3, 4, 22) <= numbers < (3, 5, 0)
