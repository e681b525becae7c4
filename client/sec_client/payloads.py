"""From Python values to payloads."""

from typing import Any

from sec_model import Payload

OCTETS = "application/octet-stream"


def encode(value: Any) -> Payload:
    """A `Payload` as it is, bytes as `application/octet-stream`, anything else as JSON.

    Raises `TypeError` or `ValueError` for what JSON cannot say.
    """
    match value:
        case Payload():
            return value
        case bytes() | bytearray() | memoryview():
            return Payload(OCTETS, bytes(value))
        case _:
            return Payload.json(value)
