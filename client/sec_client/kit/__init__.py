"""The action-server kit: decorate a function as an action and another as its undo, and serve them to the cluster.

python -m sec_client.kit inventory:server --listen 0.0.0.0:7070 --sec 10.0.0.1:7450

`SqlAlchemyStore` is in `sec_client.kit.sqlalchemy`, which needs SQLAlchemy.
"""

from sec_model import Payload

from sec_client.kit.actions import Action
from sec_client.kit.call import ActionFailed, Call, Inputs, Unavailable
from sec_client.kit.dbapi import DbApiStore
from sec_client.kit.logs import CallFields
from sec_client.kit.server import ActionServer
from sec_client.kit.service import Incoming, Middleware, Response, Status
from sec_client.kit.sql_marks import ddl
from sec_client.kit.sqlite import SqliteStore
from sec_client.kit.store import MemoryStore, Store, StoreError
from sec_client.transport import Tls
from sec_client.views import Phase

__all__ = [
    "Action",
    "ActionFailed",
    "ActionServer",
    "Call",
    "CallFields",
    "DbApiStore",
    "Incoming",
    "Inputs",
    "MemoryStore",
    "Middleware",
    "Payload",
    "Phase",
    "Response",
    "SqliteStore",
    "Status",
    "Store",
    "StoreError",
    "Tls",
    "Unavailable",
    "ddl",
]
