"""What etcd refuses before it looks at its keys, and what its ranges and relations mean. Pure.

Source: etcd's api/v3rpc/key.go (what is refused), of 3.5.
"""

from collections.abc import Sequence
from typing import Any, assert_never

from sec.store.kv import Delete, Get, KvRefused, Op, Put, Relation, Txn

TO_THE_END = b"\0"
"""As a `range_end`: all keys from `key` on."""

_BYTES_PER_OP = 8
"""About what etcd's encoding adds to the bytes of an operation."""


def in_range(key: bytes, start: bytes, end: bytes | None) -> bool:
    if end is None:
        return key == start
    return key >= start and (end == TO_THE_END or key < end)


def related(found: Any, relation: Relation, operand: Any) -> bool:
    match relation:
        case Relation.EQUAL:
            return bool(found == operand)
        case Relation.NOT_EQUAL:
            return bool(found != operand)
        case Relation.GREATER:
            return bool(found > operand)
        case Relation.LESS:
            return bool(found < operand)
        case _:
            assert_never(relation)


def check_txn(txn: Txn, max_ops: int) -> None:
    """Raises `KvRefused` for too many operations, counted as etcd counts those of nested transactions, and for empty keys."""
    most = max(len(txn.compares), len(txn.then), len(txn.otherwise))
    if most > max_ops:
        raise KvRefused(f"Too many operations in a transaction: {most}, where {max_ops} are left.")
    for compare in txn.compares:
        _check_key(compare.key)
    for op in (*txn.then, *txn.otherwise):
        check_op(op, max_ops - most)


def check_op(op: Op, max_ops: int) -> None:
    if isinstance(op, Txn):
        check_txn(op, max_ops)
    else:
        _check_key(op.key)


def _check_key(key: bytes) -> None:
    if not key:
        raise KvRefused("An operation has an empty key.")


_Ranges = list[tuple[bytes, bytes | None]]


def check_intervals(ops: Sequence[Op]) -> tuple[dict[bytes, None], _Ranges]:
    """What these operations put and delete. Raises `KvRefused` when a key is put twice, or put and deleted.

    etcd looks at both branches of every nested transaction, whichever will be taken, and lets the two branches of one transaction put
    the same key. It does not see a put in a nested transaction that a later sibling deletes; neither do we.
    """
    deleted: _Ranges = [(op.key, op.range_end) for op in ops if isinstance(op, Delete)]
    puts: dict[bytes, None] = {}

    def add(key: bytes, allowed: dict[bytes, None]) -> None:
        if (key in puts and key not in allowed) or any(in_range(key, *each) for each in deleted):
            raise KvRefused(f"The transaction writes the key {key!r} twice.")
        puts[key] = None

    for op in ops:
        if isinstance(op, Txn):
            puts_then, deleted_then = check_intervals(op.then)
            puts_otherwise, deleted_otherwise = check_intervals(op.otherwise)
            for key in puts_then:
                add(key, {})
            for key in puts_otherwise:
                add(key, puts_then)
            deleted += deleted_then + deleted_otherwise
    for op in ops:
        if isinstance(op, Put):
            add(op.key, {})
    return puts, deleted


def txn_bytes(txn: Txn) -> int:
    """About the size of a transaction as etcd encodes it."""
    size = _BYTES_PER_OP
    for compare in txn.compares:
        size += _BYTES_PER_OP + len(compare.key) + (len(compare.operand) if isinstance(compare.operand, bytes) else 0)
    for op in (*txn.then, *txn.otherwise):
        match op:
            case Put():
                size += _BYTES_PER_OP + len(op.key) + len(op.value)
            case Get() | Delete():
                size += _BYTES_PER_OP + len(op.key) + len(op.range_end or b"")
            case Txn():
                size += txn_bytes(op)
            case _:
                assert_never(op)
    return size
