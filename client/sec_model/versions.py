"""Versions of actions: the names under which action servers offer them, and those by which definitions ask for them.

An action is offered as `charge`, or with a version as `charge@2.1`: one to three whole numbers. To call it by that name is all that an action
server has to do about it. A definition asks for

    charge        any version: the newest that is offered, or the offer without a version where there is no other
    charge@2      the newest of 2, 2.0, 2.1, 2.1.5, …
    charge@2.1    the newest of 2.1, 2.1.5, …
    charge@=2.1   2.1 alone

So versions fit that begin with what is asked for, and whoever breaks an action for its callers changes a number that they name.
"""

import re
from collections.abc import Iterable
from functools import lru_cache

Version = tuple[int, ...]
"""Empty: an offer without one, which is older than all others."""

_NUMBER = r"(?:0|[1-9][0-9]{0,8})"
_FORM = re.compile(rf"(?P<action>[A-Za-z0-9][A-Za-z0-9._-]*)(?:@(?P<exact>=)?(?P<version>{_NUMBER}(?:\.{_NUMBER}){{0,2}}))?")
MAX_NAME_LENGTH = 128
OFFER_RULE = f'letters, digits, ".", "_" and "-" (at most {MAX_NAME_LENGTH}, the first a letter or a digit), and "@" before a version if it has one, as in "charge@2.1"'
"""What `is_offer` asks for, in words."""
ASKED_RULE = f'{OFFER_RULE} or "charge@=2.1"'
"""What `is_asked` asks for, in words."""


def is_offer(name: str) -> bool:
    """Whether an action may be offered under a name."""
    found = _FORM.fullmatch(name)
    return found is not None and not found["exact"] and len(name) <= MAX_NAME_LENGTH


def is_asked(name: str) -> bool:
    """Whether a definition may ask for an action by a name."""
    return _FORM.fullmatch(name) is not None and len(name) <= MAX_NAME_LENGTH


def only_offer(asked: str) -> str | None:
    """The one offer that fits what is asked for. None: there may be several."""
    return asked.replace("@=", "@") if "@=" in asked else None


def has_version(offer: str) -> bool:
    """Whether an offer has a version."""
    return "@" in offer


def fits(asked: str, offer: str) -> bool:
    """Whether an offer is one of those that are asked for."""
    if (only := only_offer(asked)) is not None:
        return offer == only
    (action, wanted), (offered, version) = _parsed(asked), _parsed(offer)
    return action == offered and version[: len(wanted)] == wanted


@lru_cache(4_096)
def newest(asked: str, offers: frozenset[str]) -> str | None:
    """The newest of the offers that fit what is asked for. None: there is none. Remembered, since every start of a node asks."""
    action, _ = _parsed(asked)
    fitting = [offer for offer in _by_action(offers).get(action, ()) if fits(asked, offer)]
    return max(fitting, key=_version, default=None)


@lru_cache(64)
def any_version(offers: frozenset[str]) -> bool:
    """Whether any of the offers has a version."""
    return any(map(has_version, offers))


@lru_cache(64)
def _by_action(offers: frozenset[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for offer in offers:
        found.setdefault(_parsed(offer)[0], []).append(offer)
    return found


def not_offered(asked: Iterable[str], offers: frozenset[str]) -> list[str]:
    """What is asked for and not offered, in order."""
    return sorted(name for name in asked if newest(name, offers) is None)


def _version(offer: str) -> Version:
    return _parsed(offer)[1]


def _parsed(name: str) -> tuple[str, Version]:
    """An action and a version, exact or not. Servers of others may offer names of any form: what is no version is part of the name."""
    found = _FORM.fullmatch(name)
    if found is None or found["version"] is None:
        return name, ()
    return found["action"], tuple(map(int, found["version"].split(".")))
