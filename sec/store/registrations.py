"""Registrations of action servers: a leased key for each, renewed through any SEC node."""

from sec_protos.v1 import coordinator_pb2

from sec.store.keys import Keys
from sec.store.kv import Delete, Get, Kv, LeaseNotFound, Put, Txn

Registration = coordinator_pb2.RegisterActionServerRequest


class ActionServerRegistry:
    """Writes registrations. SEC nodes read them through a mirror. All methods may raise `KvError`; all may be repeated."""

    def __init__(self, kv: Kv, keys: Keys, ttl_s: int) -> None:
        self.ttl_s = ttl_s
        self._kv = kv
        self._keys = keys

    async def register(self, registration: Registration) -> None:
        """Keeps an action server known for another `ttl_s`. Only what has changed is written."""
        key = self._keys.server(registration.instance_id)
        value = registration.SerializeToString(deterministic=True)
        found = await self._kv.get(Get(key))
        if found.items and found.items[0].value == value:
            try:
                await self._kv.lease_keepalive(found.items[0].lease)
            except LeaseNotFound:
                pass  # it has just expired: register anew
            else:
                return
        lease = await self._kv.lease_grant(self.ttl_s)
        await self._kv.txn(Txn(then=[Put(key, value, lease)]))

    async def unregister(self, instance_id: str) -> None:
        """Forgets an action server at once. Unknown ones are forgotten already."""
        await self._kv.txn(Txn(then=[Delete(self._keys.server(instance_id))]))
