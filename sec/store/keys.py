"""Where everything stands in the store.

    <prefix>/v1/cluster/node/<name>          an SEC node that holds a session (leased)
    <prefix>/v1/cluster/leader/...           the election
    <prefix>/v1/cluster/drain/<name>         an operator wants the node drained
    <prefix>/v1/cluster/wish/<name>          how many sagas the leader wants the node to give away (leased to that node)
    <prefix>/v1/cluster/server/<instance>    an action server that registered itself (leased)
    <prefix>/v1/00/definition/<hash>         definitions, by content
    <prefix>/v1/00/retired/<hash>            definitions that no saga seemed to use, before they are deleted
    <prefix>/v1/00/saga/<id>                 what a saga was submitted with
    <prefix>/v1/00/log/<id>/<sequence>       batches of records, by the number of their first (16 hex digits)
    <prefix>/v1/00/live/active/<id>          index: sagas that run, unwind or are stuck; the value is a summary for lists
    <prefix>/v1/00/live/owner/<id>           who owns an active saga (leased); its create revision is the epoch
    <prefix>/v1/00/live/command/<id>/<command>   what an operator told an active saga and its owner has not recorded yet
    <prefix>/v1/00/created/<id>              index: sagas that were not started
    <prefix>/v1/00/ended/<id>                index: sagas that have ended

"00" is the shard: all keys of one saga stand under it, and no transaction spans two sagas that need each other, so that shards can live in
different etcd clusters one day. `active`, `owner` and `command` share a prefix because one watch over both tells an orphan from a
saga that ended: a transaction's changes arrive together.
"""

from dataclasses import dataclass
from functools import cached_property

from sec.core.records import SagaId, SecNodeName

LAYOUT_VERSION = "v1"


@dataclass(frozen=True)
class Keys:
    """The keys of one cluster. `prefix` is configurable, so that several clusters can share an etcd."""

    prefix: str = "/sec"

    def _cluster(self, rest: str) -> bytes:
        return f"{self.prefix}/{LAYOUT_VERSION}/cluster/{rest}".encode()

    def _shard(self, rest: str) -> bytes:
        return f"{self.prefix}/{LAYOUT_VERSION}/00/{rest}".encode()

    @cached_property
    def nodes(self) -> bytes:
        return self._cluster("node/")

    def node(self, name: SecNodeName) -> bytes:
        return self.nodes + name.encode()

    @cached_property
    def election(self) -> bytes:
        return self._cluster("leader/")

    @cached_property
    def drains(self) -> bytes:
        return self._cluster("drain/")

    def drain(self, name: SecNodeName) -> bytes:
        return self.drains + name.encode()

    @cached_property
    def wishes(self) -> bytes:
        return self._cluster("wish/")

    def wish(self, name: SecNodeName) -> bytes:
        return self.wishes + name.encode()

    @cached_property
    def servers(self) -> bytes:
        return self._cluster("server/")

    def server(self, instance_id: str) -> bytes:
        return self.servers + instance_id.encode()

    def definition(self, definition_hash: str) -> bytes:
        return self._shard(f"definition/{definition_hash}")

    def retired(self, definition_hash: str) -> bytes:
        return self._shard(f"retired/{definition_hash}")

    @cached_property
    def _heads(self) -> bytes:
        return self._shard("saga/")

    def saga(self, saga_id: SagaId) -> bytes:
        return self._heads + saga_id.encode()

    @cached_property
    def logs(self) -> bytes:
        """The prefix of all logs."""
        return self._shard("log/")

    def log(self, saga_id: SagaId) -> bytes:
        """The prefix of a saga's log."""
        return self.logs + saga_id.encode() + b"/"

    def log_batch(self, saga_id: SagaId, first_sequence: int) -> bytes:
        return self.log(saga_id) + b"%016x" % first_sequence

    @cached_property
    def live(self) -> bytes:
        """The prefix of `active` and `owner`."""
        return self._shard("live/")

    @cached_property
    def actives(self) -> bytes:
        return self._shard("live/active/")

    def active(self, saga_id: SagaId) -> bytes:
        return self.actives + saga_id.encode()

    @cached_property
    def owners(self) -> bytes:
        return self._shard("live/owner/")

    def owner(self, saga_id: SagaId) -> bytes:
        return self.owners + saga_id.encode()

    @cached_property
    def commands(self) -> bytes:
        return self._shard("live/command/")

    def commands_of(self, saga_id: SagaId) -> bytes:
        """The prefix of the commands for a saga."""
        return self.commands + saga_id.encode() + b"/"

    def command(self, saga_id: SagaId, command_id: str) -> bytes:
        return self.commands_of(saga_id) + command_id.encode()

    @cached_property
    def createds(self) -> bytes:
        return self._shard("created/")

    def created(self, saga_id: SagaId) -> bytes:
        return self.createds + saga_id.encode()

    @cached_property
    def endeds(self) -> bytes:
        return self._shard("ended/")

    def ended(self, saga_id: SagaId) -> bytes:
        return self.endeds + saga_id.encode()


def last_segment(key: bytes) -> str:
    """What stands behind the last "/": an id, a name or a sequence number."""
    return key[key.rindex(b"/") + 1 :].decode()
