"""Definitions in the store, by the hash of their content. Stored once, compiled once by each SEC node, shared by all sagas made from them."""

from collections import OrderedDict

from sec_model import Graph, compile_graph
from sec_model.codec import definition_from_proto, definition_hash
from sec_protos.v1 import definition_pb2

from sec.core.errors import CorruptLog
from sec.store.keys import Keys
from sec.store.kv import Get, Kv, Put, Txn, absent

MAX_CACHED = 1_000
MAX_CACHED_NODES = 500_000
"""Graphs kept, and their nodes in all; those of sagas that run are held by these anyway."""


class DefinitionStore:
    """Reads and writes definitions, with a cache of compiled graphs."""

    def __init__(self, kv: Kv, keys: Keys) -> None:
        self._kv = kv
        self._keys = keys
        self._graphs: OrderedDict[str, Graph] = OrderedDict()
        self._nodes = 0

    def __contains__(self, digest: str) -> bool:
        """Whether it is cached, and so was in the store a while ago."""
        return digest in self._graphs

    async def put(self, data: bytes, graph: Graph) -> str:
        """Stores a checked definition, by its canonical bytes, unless it is there; returns its hash. Doing it twice is harmless, so a lost answer is too:
        raises `KvError` of any kind, and the caller may try again."""
        digest = definition_hash(data)
        if digest not in self._graphs:
            key = self._keys.definition(digest)
            await self._kv.txn(Txn([absent(key)], [Put(key, data)]))
            self._remember(digest, graph)
        return digest

    async def graph(self, digest: str) -> Graph:
        """The graph of a stored definition. Raises `CorruptLog` when it is missing or cannot be read."""
        cached = self._graphs.get(digest)
        if cached is not None:
            self._graphs.move_to_end(digest)
            return cached
        message = await self.message(digest)
        try:
            graph = compile_graph(definition_from_proto(message))
        except ValueError as error:
            raise CorruptLog(f"The definition {digest} in the store breaks a rule of this version: {error}") from error
        self._remember(digest, graph)
        return graph

    async def message(self, digest: str) -> definition_pb2.SagaDefinition:
        """A stored definition as it was submitted. Raises `CorruptLog` when it is missing or damaged."""
        data = await self._stored(digest)
        if data is None:
            raise CorruptLog(f"The definition {digest} is not in the store.")
        if definition_hash(data) != digest:
            raise CorruptLog(f"The definition {digest} in the store is damaged: its content has another hash.")
        return definition_pb2.SagaDefinition.FromString(data)

    async def _stored(self, digest: str) -> bytes | None:
        """Also while it is retired. It may be moved between the looks, and back, so its own place is looked at twice."""
        place, other = self._keys.definition(digest), self._keys.retired(digest)
        for key in (place, other, place):
            if items := (await self._kv.get(Get(key))).items:
                return items[0].value
        return None

    def forget(self, digest: str) -> None:
        """Drops a definition from the cache: the store turned out not to have it."""
        graph = self._graphs.pop(digest, None)
        self._nodes -= 0 if graph is None else len(graph.nodes)

    def _remember(self, digest: str, graph: Graph) -> None:
        self.forget(digest)
        self._graphs[digest] = graph
        self._nodes += len(graph.nodes)
        while len(self._graphs) > MAX_CACHED or self._nodes > MAX_CACHED_NODES:
            self.forget(next(iter(self._graphs)))
