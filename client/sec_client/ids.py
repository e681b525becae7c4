"""Saga ids that are ordered by time."""

import secrets
import threading
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_RANDOM_BITS = 80

_lock = threading.Lock()
_last = 0


def new_saga_id() -> str:
    """26 letters and digits: 48 bits of milliseconds and 80 random bits (the layout of a ULID), in order of time.

    Ids drawn in one process strictly increase, even within a millisecond and when the clock is set back.
    """
    global _last
    drawn = (time.time_ns() // 1_000_000) << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
    with _lock:
        _last = number = drawn if drawn > _last else _last + 1
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))
