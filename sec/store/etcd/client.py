"""`EtcdKv`: the store's port over a real etcd."""

from typing import Any

import grpc.aio
from aetcd import rpc

from sec.store.etcd import codec
from sec.store.etcd.channel import Member, Metadata, Pool, Repeat
from sec.store.etcd.config import EtcdConfig
from sec.store.etcd.errors import says_full
from sec.store.etcd.watch import WatchStream
from sec.store.kv import Get, GetResult, LeaseId, LeaseNotFound, Revision, Status, Txn, TxnResult, Watch


class EtcdKv:
    """Implements `sec.store.kv.Kv`. Belongs to the event loop in which it is first used.

    A transaction and a revocation are sent at most once, and only on a connection that stands. Reads, renewals and grants are
    repeated on other endpoints within their timeout (a grant whose answer was lost leaves a lease behind that nobody uses, and
    that expires). Connections are made by the first call, not here.
    """

    def __init__(self, config: EtcdConfig) -> None:
        self._config = config
        self._opened: tuple[Pool, WatchStream] | None = None

    @property
    def _pool(self) -> Pool:
        return self._open()[0]

    def _open(self) -> tuple[Pool, WatchStream]:
        if self._opened is None:
            pool = Pool(self._config)
            self._opened = pool, WatchStream(pool)
        return self._opened

    async def txn(self, txn: Txn, *, timeout_s: float | None = None) -> TxnResult:
        message = codec.txn_bytes(txn)

        def send(member: Member, metadata: Metadata, attempt_s: float) -> Any:
            return member.txn(message, metadata=metadata, timeout=attempt_s)

        answer = await self._pool.call("carry out a transaction", send, repeat=Repeat.NEVER, timeout_s=timeout_s)
        return codec.txn_result(txn, answer)

    async def get(
        self, get: Get, *, revision: Revision | None = None, serializable: bool = False, timeout_s: float | None = None
    ) -> GetResult:
        message = codec.range_request(get, revision=revision, serializable=serializable)

        def send(member: Member, metadata: Metadata, attempt_s: float) -> Any:
            return member.kv.Range(message, metadata=metadata, timeout=attempt_s)

        answer = await self._pool.call(f"read {get.key!r}", send, repeat=Repeat.READ, timeout_s=timeout_s)
        return codec.get_result(answer)

    def watch(self, key: bytes, range_end: bytes | None = None, *, start: Revision | None = None, previous: bool = False) -> Watch:
        if start is not None and start < 1:
            raise ValueError(f"A watch starts at revision 1 or later, not at {start}.")
        return self._open()[1].watch(key, range_end, start, previous)

    async def lease_grant(self, ttl_s: int, *, timeout_s: float | None = None) -> LeaseId:
        message = rpc.LeaseGrantRequest(TTL=ttl_s)

        def send(member: Member, metadata: Metadata, attempt_s: float) -> Any:
            return member.lease.LeaseGrant(message, metadata=metadata, timeout=attempt_s)

        answer = await self._pool.call(f"grant a lease of {ttl_s} s", send, repeat=Repeat.IDEMPOTENT, timeout_s=timeout_s)
        return LeaseId(answer.ID)

    async def lease_keepalive(self, lease: LeaseId, *, timeout_s: float | None = None) -> float:
        message = rpc.LeaseKeepAliveRequest(ID=lease)
        what = f"renew the lease {lease:x}"

        async def send(member: Member, metadata: Metadata, attempt_s: float) -> Any:
            call = member.lease.LeaseKeepAlive(iter((message,)), metadata=metadata, timeout=attempt_s)
            try:
                answer = await call.read()
            finally:
                call.cancel()
            if answer is grpc.aio.EOF:
                nothing = grpc.aio.Metadata()
                raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, "the stream ended without an answer")
            return answer

        answer = await self._pool.call(what, send, repeat=Repeat.IDEMPOTENT, timeout_s=timeout_s)
        if answer.TTL <= 0:
            raise LeaseNotFound(f"Could not {what}: it has expired or was revoked.")
        return float(answer.TTL)

    async def lease_revoke(self, lease: LeaseId, *, timeout_s: float | None = None) -> None:
        message = rpc.LeaseRevokeRequest(ID=lease)

        def send(member: Member, metadata: Metadata, attempt_s: float) -> Any:
            return member.lease.LeaseRevoke(message, metadata=metadata, timeout=attempt_s)

        await self._pool.call(f"revoke the lease {lease:x}", send, repeat=Repeat.NEVER, timeout_s=timeout_s)

    async def status(self, *, timeout_s: float | None = None) -> Status:
        def send(member: Member, metadata: Metadata, attempt_s: float) -> Any:
            return member.maintenance.Status(rpc.StatusRequest(), metadata=metadata, timeout=attempt_s)

        answer = await self._pool.call("ask for the status", send, repeat=Repeat.READ, timeout_s=timeout_s)
        return Status(str(answer.version), full=says_full(answer.errors))

    async def aclose(self) -> None:
        if self._opened is not None:
            pool, watches = self._opened
            await watches.aclose()
            await pool.aclose()
