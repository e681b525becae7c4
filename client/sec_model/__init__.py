"""What a saga is made of: definitions, their checks, the builder and the file form.

Shared by the client (which builds and checks a definition before it is sent) and by the SEC node (which checks it again before
anything is written), so that both apply one set of rules. Pure: no I/O, and nothing of a saga's run stands here.
"""

from sec_model.builder import Saga, action, check_definition, constant, signal, subsaga, timer
from sec_model.definition import (
    DEFAULT_RETRY,
    DEFAULT_UNDO_RETRY,
    ActionNode,
    ConstantNode,
    Deadline,
    Definition,
    DefinitionError,
    Input,
    Node,
    OnDeadline,
    Payload,
    RetryPolicy,
    SignalNode,
    SubsagaNode,
    TimerNode,
    UndoPolicy,
)
from sec_model.graph import Graph, compile_graph
from sec_model.schemas import ActionSchemas, Schema, SchemaError

__all__ = [
    "DEFAULT_RETRY",
    "DEFAULT_UNDO_RETRY",
    "ActionNode",
    "ActionSchemas",
    "ConstantNode",
    "Deadline",
    "Definition",
    "DefinitionError",
    "Graph",
    "Input",
    "Node",
    "OnDeadline",
    "Payload",
    "RetryPolicy",
    "Saga",
    "Schema",
    "SchemaError",
    "SignalNode",
    "SubsagaNode",
    "TimerNode",
    "UndoPolicy",
    "action",
    "check_definition",
    "compile_graph",
    "constant",
    "signal",
    "subsaga",
    "timer",
]
