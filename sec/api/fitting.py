"""Whether sagas that are submitted fit the actions that they call, as far as the action servers describe these."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from sec_model import Graph, Payload
from sec_model.edges import EdgeCheck, Offered, as_asked, check_edges, params_problems
from sec_model.schemas import ActionSchemas, Budget

from sec.dispatch.directory import Directory

MAX_STEPS = 10_000
"""Of one check, on the event loop: tens of milliseconds at most, whatever the schemas are."""
MAX_CACHED = 1_000
"""Definitions whose check is kept."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """A check, and of what. `known` is by what the definition asks for, and empty where nothing is described."""

    schemas: Mapping[str, tuple[ActionSchemas, ...]]
    offered: frozenset[str]
    known: Offered
    check: EdgeCheck


class FitChecks:
    """Checks submits. A definition is checked once for as long as the descriptions of actions stay as they are; params each time."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    def problems(self, digest: str, graph: Graph, params: Payload) -> list[str]:
        """What does not fit, as whole sentences, of a definition with this hash. What nobody describes fits."""
        if not self._directory.schemas:
            return []
        kept = self._check(digest, graph)
        return [*kept.check.problems, *params_problems(kept.check.readers, kept.known, params, Budget(MAX_STEPS))]

    def _check(self, digest: str, graph: Graph) -> _Kept:
        schemas, offered = self._directory.schemas, self._directory.offered
        kept = self._kept.get(digest)
        if kept is None or kept.schemas is not schemas or kept.offered is not offered:
            known = as_asked(graph, schemas, offered)
            kept = self._kept[digest] = _Kept(schemas, offered, known, check_edges(graph, known, Budget(MAX_STEPS)))
            if len(self._kept) > MAX_CACHED:
                self._kept.popitem(last=False)
        self._kept.move_to_end(digest)
        return kept
