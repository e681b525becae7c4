"""Protobuf's wire format, laid by hand.

A message object for each part of what is written with every step of every saga costs more than all else about the writing. So the few messages that
there are so many of are put together from bytes; `sec.codec` and `sec.store.etcd.codec` say which, and tests compare them with what protobuf
itself makes. Everything is read by protobuf. Source: https://protobuf.dev/programming-guides/encoding.
"""

_SEVEN_BITS = 0x7F
_MORE = 0x80


def _varint(number: int) -> bytes:
    if number < 0:
        raise ValueError(f"Only numbers from 0 on are laid by hand, not {number}.")
    low = bytearray()
    while number > _SEVEN_BITS:
        low.append(number & _SEVEN_BITS | _MORE)
        number >>= 7
    low.append(number)
    return bytes(low)


_SMALL = tuple(map(_varint, range(4096)))
"""Most numbers are lengths, of names and small payloads."""


def varint(number: int) -> bytes:
    """A whole number, or the length of what follows. Raises `ValueError` below 0."""
    return _SMALL[number] if 0 <= number < 4096 else _varint(number)


def tag(number: int, *, counted: bool = False) -> bytes:
    """What stands before the value of field `number`: a string, bytes or a message, or with `counted` a whole number. For constants."""
    return _varint(number << 3 | (0 if counted else 2))


def field(tag: bytes, data: bytes) -> bytes:
    """A string, bytes or a message, under its tag."""
    size = len(data)
    return tag + (_SMALL[size] if size < 4096 else _varint(size)) + data
