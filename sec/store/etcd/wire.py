"""Protobuf's wire format, laid by hand.

A message object for each part of a transaction costs more than all else about writing it, and each step of each saga is one. So transactions are put
together from bytes (`sec.store.etcd.codec`), and tests compare them with what protobuf itself makes. Everything is read by protobuf.
Source: https://protobuf.dev/programming-guides/encoding.
"""

from functools import lru_cache

_SEVEN_BITS = 0x7F
_MORE = 0x80
_KEPT = 4096


@lru_cache(_KEPT)
def _varint(number: int) -> bytes:
    if number < 0:
        raise ValueError(f"Only numbers from 0 on are laid by hand, not {number}.")
    low = bytearray()
    while number > _SEVEN_BITS:
        low.append(number & _SEVEN_BITS | _MORE)
        number >>= 7
    low.append(number)
    return bytes(low)


class _Varints(dict[int, bytes]):
    """Whole numbers as they are written: the small ones, since most are lengths, and the latest of the large ones, such as leases and epochs."""

    def __missing__(self, number: int) -> bytes:
        return _varint(number)


VARINT = _Varints()
"""`VARINT[number]` is a whole number, or the length of what follows. A look into a dictionary costs less than a call. Raises `ValueError` below 0."""
VARINT.update((number, _varint(number)) for number in range(_KEPT))


def tag(number: int, *, counted: bool = False) -> bytes:
    """What stands before the value of field `number`: before the length of a string, bytes or a message, or with `counted` before a whole number."""
    return VARINT[number << 3 | (0 if counted else 2)]
