"""What action servers say of their actions. Schemas are parsed once for each description, on a thread: that of a large one takes a while."""

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass

from sec_model.schemas import ActionSchemas, SchemaError
from sec_model.schemas_codec import schemas_from_proto
from sec_protos.v1 import action_server_pb2

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OfferedAction:
    """An action, as its server describes it."""

    name: str
    summary: str
    schemas: ActionSchemas


class Descriptions:
    """Reads the descriptions that come from one action server, again and again."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._parsed: dict[str, tuple[bytes, ActionSchemas]] = {}

    async def read(self, actions: Iterable[action_server_pb2.ActionDescription]) -> dict[str, OfferedAction]:
        """By name. Schemas that are not valid are logged, and left out."""
        given = {a.name: (a, a.schemas.SerializeToString(deterministic=True)) for a in actions}
        known = self._parsed
        self._parsed = {name: known[name] for name, (_, data) in given.items() if name in known and known[name][0] == data}
        for name, (action, data) in given.items():
            if name not in self._parsed:
                schemas = await asyncio.to_thread(self._parse, action) if data else ActionSchemas()
                self._parsed[name] = data, schemas
        return {name: OfferedAction(name, action.summary, self._parsed[name][1]) for name, (action, _) in given.items()}

    def _parse(self, action: action_server_pb2.ActionDescription) -> ActionSchemas:
        try:
            return schemas_from_proto(action.schemas)
        except SchemaError as error:
            _log.warning(
                'The action server at %s describes the action "%s" in a way that cannot be used, so that sagas are not checked against it. %s',
                self._address,
                action.name,
                error,
            )
            return ActionSchemas()
