"""The port's values to etcd's messages and back. No I/O, no decisions."""

from collections.abc import Iterable, Sequence
from typing import Any, assert_never

from aetcd import rpc

from sec.store.etcd.wire import VARINT, tag
from sec.store.kv import (
    Compare,
    Delete,
    DeleteResult,
    Event,
    EventKind,
    Get,
    GetResult,
    KeyValue,
    Op,
    OpResult,
    Put,
    PutResult,
    Relation,
    Revision,
    Target,
    Txn,
    TxnResult,
)

_VARIANTS = {
    Target.VERSION: rpc.Compare.VERSION,
    Target.CREATE: rpc.Compare.CREATE,
    Target.MOD: rpc.Compare.MOD,
    Target.VALUE: rpc.Compare.VALUE,
}
_RELATIONS = {
    Relation.EQUAL: rpc.Compare.EQUAL,
    Relation.NOT_EQUAL: rpc.Compare.NOT_EQUAL,
    Relation.GREATER: rpc.Compare.GREATER,
    Relation.LESS: rpc.Compare.LESS,
}


def range_request(get: Get, *, revision: Revision | None = None, serializable: bool = False) -> Any:
    return rpc.RangeRequest(
        key=get.key,
        range_end=get.range_end or b"",
        limit=get.limit,
        keys_only=get.keys_only,
        revision=revision or 0,
        serializable=serializable,
    )


# Transactions are laid by hand: each step of a saga is one, nested in another. The numbers of the fields are those of etcd's rpc.proto.

_COMPARE, _SUCCESS, _FAILURE = tag(1), tag(2), tag(3)
_OPERAND = {
    Target.VERSION: tag(4, counted=True),
    Target.CREATE: tag(5, counted=True),
    Target.MOD: tag(6, counted=True),
    Target.VALUE: tag(7),
}
_HOW = {
    (target, relation): (tag(1, counted=True) + VARINT[result] if result else b"")
    + (tag(2, counted=True) + VARINT[variant] if variant else b"")
    + tag(3)
    for target, variant in _VARIANTS.items()
    for relation, result in _RELATIONS.items()
}
"""What stands in a comparison before its key. As protobuf has it, a field that is 0 is left out."""
_RANGE, _PUT, _DELETE, _TXN = tag(1), tag(2), tag(3), tag(4)
_KEY = tag(1)
_VALUE, _LEASE = tag(2), tag(3, counted=True)
_RANGE_END = tag(2)


def txn_bytes(txn: Txn) -> bytes:
    """The `TxnRequest` of a transaction."""
    parts: list[bytes] = []
    for compare in txn.compares:
        part = _compare_bytes(compare)
        parts += (_COMPARE, VARINT[len(part)], part)
    for op in txn.then:
        part = _op_bytes(op)
        parts += (_SUCCESS, VARINT[len(part)], part)
    for op in txn.otherwise:
        part = _op_bytes(op)
        parts += (_FAILURE, VARINT[len(part)], part)
    return b"".join(parts)


def _compare_bytes(compare: Compare) -> bytes:
    key, target, operand = compare.key, compare.target, compare.operand
    data = _HOW[target, compare.relation] + VARINT[len(key)] + key + _OPERAND[target]
    return data + (VARINT[len(operand)] + operand if isinstance(operand, bytes) else VARINT[operand])


def _op_bytes(op: Op) -> bytes:
    match op:
        case Put():
            key, value = op.key, op.value
            body = b"".join((_KEY, VARINT[len(key)], key, _VALUE, VARINT[len(value)], value))
            if op.lease:
                body += _LEASE + VARINT[op.lease]
            return _PUT + VARINT[len(body)] + body
        case Txn():
            body = txn_bytes(op)
            return _TXN + VARINT[len(body)] + body
        case Delete():
            key, range_end = op.key, op.range_end
            body = _KEY + VARINT[len(key)] + key
            if range_end:
                body += _RANGE_END + VARINT[len(range_end)] + range_end
            return _DELETE + VARINT[len(body)] + body
        case Get():
            body = bytes(range_request(op).SerializeToString())
            return _RANGE + VARINT[len(body)] + body
        case _:
            assert_never(op)


def txn_result(txn: Txn, answer: Any) -> TxnResult:
    # etcd fills in the revision of the outermost transaction only; the nested ones happen at the same.
    revision = Revision(answer.header.revision)
    return _txn_result(txn, answer, TxnResult(True, revision, (PutResult(revision),)))


def _txn_result(txn: Txn, answer: Any, put: TxnResult) -> TxnResult:
    """`put` is the result of one that has put one key: so are most, and all at one revision are alike."""
    succeeded = answer.succeeded
    ops: Sequence[Op] = txn.then if succeeded else txn.otherwise
    if succeeded and len(ops) == 1 and type(ops[0]) is Put:
        return put
    one_put = put.results[0]
    results = [
        one_put if type(op) is Put else _op_result(op, response, put) for op, response in zip(ops, answer.responses, strict=True)
    ]
    return TxnResult(succeeded, put.revision, tuple(results))


def _op_result(op: Op, response: Any, put: TxnResult) -> OpResult:
    match op:
        case Txn():
            return _txn_result(op, response.response_txn, put)
        case Put():
            return put.results[0]
        case Delete():
            return DeleteResult(put.revision, response.response_delete_range.deleted)
        case Get():
            return get_result(response.response_range)
        case _:
            assert_never(op)


def get_result(answer: Any) -> GetResult:
    return GetResult(tuple(key_value(kv) for kv in answer.kvs), answer.more, answer.count, Revision(answer.header.revision))


def key_value(kv: Any) -> KeyValue:
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def events(messages: Iterable[Any], at_least: int) -> tuple[Event, ...]:
    """The changes of a watch from this revision on."""
    found = []
    for message in messages:
        kv = message.kv
        if kv.mod_revision >= at_least:
            kind = _DELETE_EVENT if message.type == _DELETED else _PUT_EVENT
            found.append(Event(kind, key_value(kv), key_value(message.prev_kv) if message.HasField("prev_kv") else None))
    return tuple(found)


_DELETED = rpc.Event.DELETE
_PUT_EVENT, _DELETE_EVENT = EventKind.PUT, EventKind.DELETE
