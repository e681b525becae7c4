"""Transactions laid by hand are read by protobuf as the messages that they are."""

from typing import Any

import pytest
from aetcd import rpc
from hypothesis import given
from hypothesis import strategies as st

from sec.store.etcd.codec import txn_bytes
from sec.store.etcd.wire import VARINT
from sec.store.kv import Compare, Delete, Get, LeaseId, Put, Relation, Target, Txn, absent, created_at

KEYS = st.binary(min_size=1, max_size=40)
VALUES = st.binary(max_size=200)
NUMBERS = st.integers(0, 2**63 - 1)
COMPARES = st.builds(
    Compare, KEYS, st.sampled_from([t for t in Target if t is not Target.VALUE]), st.sampled_from(Relation), NUMBERS
) | st.builds(Compare, KEYS, st.just(Target.VALUE), st.sampled_from(Relation), VALUES)
SIMPLE_OPS = (
    st.builds(Put, KEYS, VALUES, NUMBERS.map(LeaseId))
    | st.builds(Get, KEYS, st.none() | KEYS, st.integers(0, 1_000), st.booleans())
    | st.builds(Delete, KEYS, st.none() | KEYS)
)
TXNS = st.recursive(
    st.builds(Txn, st.lists(COMPARES, max_size=3), st.lists(SIMPLE_OPS, max_size=3), st.lists(SIMPLE_OPS, max_size=3)),
    lambda inner: st.builds(Txn, st.lists(COMPARES, max_size=2), st.lists(inner, max_size=3), st.lists(inner, max_size=2)),
    max_leaves=6,
)

_FIELDS = {Target.VERSION: "version", Target.CREATE: "create_revision", Target.MOD: "mod_revision", Target.VALUE: "value"}


def message(txn: Txn) -> Any:
    compares = [
        rpc.Compare(
            key=c.key,
            target=getattr(rpc.Compare, c.target.name),
            result=getattr(rpc.Compare, c.relation.name),
            **{_FIELDS[c.target]: c.operand},
        )
        for c in txn.compares
    ]
    return rpc.TxnRequest(compare=compares, success=[op(o) for o in txn.then], failure=[op(o) for o in txn.otherwise])


def op(given: Get | Put | Delete | Txn) -> Any:
    match given:
        case Put(key, value, lease):
            return rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=value, lease=lease))
        case Get(key, end, limit, keys_only):
            asked = rpc.RangeRequest(key=key, range_end=end or b"", limit=limit, keys_only=keys_only)
            return rpc.RequestOp(request_range=asked)
        case Delete(key, end):
            return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key, range_end=end or b""))
        case Txn():
            return rpc.RequestOp(request_txn=message(given))


@given(TXNS)
def test_what_is_laid_by_hand_is_what_was_meant(txn: Txn) -> None:
    read = rpc.TxnRequest.FromString(txn_bytes(txn))
    again = rpc.TxnRequest.FromString(message(txn).SerializeToString())
    assert read == again


def test_what_is_laid_by_hand_has_no_unknown_fields() -> None:
    txn = Txn([created_at(b"k", 300)], [Put(b"k", b"v", LeaseId(7)), Txn((), [Delete(b"k", b"l")])], [Get(b"k")])
    read = rpc.TxnRequest.FromString(txn_bytes(txn))
    read.DiscardUnknownFields()
    assert read == message(txn)


def test_what_is_laid_by_hand_is_as_short_as_protobuf_makes_it() -> None:
    step = Txn([created_at(b"owner", 300), absent(b"log")], [Put(b"log", b"records"), Delete(b"active"), Delete(b"a", b"b")])
    assert txn_bytes(Txn(then=[step])) == message(Txn(then=[step])).SerializeToString()


@pytest.mark.parametrize("size", [127, 128, 4_095, 4_096, 70_000, 3_000_000])
def test_values_are_of_any_size(size: int) -> None:
    txn = Txn(then=[Txn(then=[Put(b"k", bytes(size))])])
    assert rpc.TxnRequest.FromString(txn_bytes(txn)) == message(txn)


def test_numbers_below_zero_are_not_laid_by_hand() -> None:
    with pytest.raises(ValueError, match="from 0 on"):
        VARINT[-1]
