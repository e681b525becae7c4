"""The port's values to etcd's messages and back. No I/O, no decisions."""

from collections.abc import Sequence
from typing import Any, assert_never

from aetcd import rpc

from sec.store.kv import (
    Delete,
    DeleteResult,
    Event,
    EventKind,
    Get,
    GetResult,
    KeyValue,
    LeaseId,
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

_RELATIONS = {
    Relation.EQUAL: rpc.Compare.EQUAL,
    Relation.NOT_EQUAL: rpc.Compare.NOT_EQUAL,
    Relation.GREATER: rpc.Compare.GREATER,
    Relation.LESS: rpc.Compare.LESS,
}
_TARGETS = {
    Target.VERSION: (rpc.Compare.VERSION, "version"),
    Target.CREATE: (rpc.Compare.CREATE, "create_revision"),
    Target.MOD: (rpc.Compare.MOD, "mod_revision"),
    Target.VALUE: (rpc.Compare.VALUE, "value"),
}


def range_request(get: Get, *, revision: Revision | None = None, serializable: bool = False) -> Any:
    message = rpc.RangeRequest(revision=revision or 0, serializable=serializable)
    _fill_range(message, get)
    return message


def _fill_range(message: Any, get: Get) -> None:
    message.key = get.key
    message.range_end = get.range_end or b""
    message.limit = get.limit
    message.keys_only = get.keys_only


def txn_request(txn: Txn) -> Any:
    message = rpc.TxnRequest()
    _fill_txn(message, txn)
    return message


def _fill_txn(message: Any, txn: Txn) -> None:
    """In place: a message that is made of messages copies each of them, those of nested transactions at each level."""
    for compare in txn.compares:
        target, field = _TARGETS[compare.target]
        filled = message.compare.add(key=compare.key, target=target, result=_RELATIONS[compare.relation])
        setattr(filled, field, compare.operand)
    for op in txn.then:
        _fill_op(message.success.add(), op)
    for op in txn.otherwise:
        _fill_op(message.failure.add(), op)


def _fill_op(message: Any, op: Op) -> None:
    match op:
        case Put():
            put = message.request_put
            put.key = op.key
            put.value = op.value
            put.lease = op.lease
        case Get():
            _fill_range(message.request_range, op)
        case Delete():
            delete = message.request_delete_range
            delete.key = op.key
            delete.range_end = op.range_end or b""
        case Txn():
            message.request_txn.SetInParent()
            _fill_txn(message.request_txn, op)
        case _:
            assert_never(op)


def txn_result(txn: Txn, answer: Any) -> TxnResult:
    return _txn_result(txn, answer, Revision(answer.header.revision))


def _txn_result(txn: Txn, answer: Any, revision: Revision) -> TxnResult:
    # etcd fills in the revision of the outermost transaction only; the nested ones happen at the same.
    ops: Sequence[Op] = txn.then if answer.succeeded else txn.otherwise
    put = PutResult(revision)
    if all(isinstance(op, Put) for op in ops):  # most are: their answers say nothing more
        return TxnResult(answer.succeeded, revision, (put,) * len(ops))
    results = tuple(
        put if isinstance(op, Put) else _op_result(op, response, revision)
        for op, response in zip(ops, answer.responses, strict=True)
    )
    return TxnResult(answer.succeeded, revision, results)


def _op_result(op: Get | Delete | Txn, response: Any, revision: Revision) -> OpResult:
    match op:
        case Get():
            return get_result(response.response_range)
        case Delete():
            return DeleteResult(revision, response.response_delete_range.deleted)
        case Txn():
            return _txn_result(op, response.response_txn, revision)
        case _:
            assert_never(op)


def get_result(answer: Any) -> GetResult:
    return GetResult(tuple(key_value(kv) for kv in answer.kvs), answer.more, answer.count, Revision(answer.header.revision))


def key_value(kv: Any) -> KeyValue:
    return KeyValue(kv.key, kv.value, Revision(kv.create_revision), Revision(kv.mod_revision), kv.version, LeaseId(kv.lease))


def event(message: Any) -> Event:
    kind = EventKind.DELETE if message.type == rpc.Event.DELETE else EventKind.PUT
    return Event(kind, key_value(message.kv), key_value(message.prev_kv) if message.HasField("prev_kv") else None)
