"""Sagas in one line, for tests.

    instance_id > params=5 > ip | volume | alloc(server_id > reserve)@instance_id > boot*3/2 > extra[ip]

Stages stand between ">", the nodes of a stage between "|". `name=5` is a constant, `name(...)` a subsaga, whose params come from the node behind
"@". `*3/2` allows three calls of the action and two of its undo action. `[a b]` gives the edges instead of the stage before.
An action has the name of its node, or the one behind a ":", as in `pay:charge@2`.

    approval?60 > cool_off~30 > pay!point > ship^20p > tell!none

`name?` waits for a signal, `name~30` 30 seconds. `^20` is a deadline that makes the node fail after 20 seconds, `^20p` one that pauses the saga;
that of a signal stands right behind the "?". `!none`, `!confirm`, `!manual` and `!point` are undo policies.
"""

import json
import re

from sec_model import (
    DEFAULT_RETRY,
    DEFAULT_UNDO_RETRY,
    Deadline,
    Definition,
    Graph,
    OnDeadline,
    RetryPolicy,
    Saga,
    UndoPolicy,
    action,
    compile_graph,
    constant,
    signal,
    subsaga,
    timer,
)
from sec_model.builder import NodeSpec

_TOKEN = re.compile(r"\s*(?:(?P<word>[A-Za-z0-9_.-]+)|(?P<sign>[>|()\[\]=*/@?~!^:]))")
_UNDO = {
    "none": UndoPolicy.NONE_NEEDED,
    "confirm": UndoPolicy.CONFIRM,
    "manual": UndoPolicy.MANUAL,
    "point": UndoPolicy.POINT_OF_NO_RETURN,
}

DEMO_PROVISION = (
    "instance_id > server_alloc_params=5 > instance_ip | volume_id | server_alloc(server_id > server_reserve)@server_alloc_params"
    " > instance_configure > volume_attach > instance_boot > print"
)


def definition(text: str, name: str = "s") -> Definition:
    """The definition that the text describes, unchecked."""
    tokens = [m.group().strip() for m in _TOKEN.finditer(text)]
    assert "".join(tokens) == re.sub(r"\s", "", text), f"cannot read {text!r}"
    tokens.append("")
    saga = _saga(tokens, name)
    assert tokens == [""], f"not read: {tokens}"
    return saga.unchecked()


def graph(text: str, name: str = "s") -> Graph:
    """The checked graph of the saga that the text describes."""
    return compile_graph(definition(text, name))


def _saga(tokens: list[str], name: str) -> Saga:
    saga = Saga(name)
    while True:
        stage = [_node(tokens)]
        while tokens[0] == "|":
            tokens.pop(0)
            stage.append(_node(tokens))
        saga.append_parallel(*stage)
        if tokens[0] != ">":
            return saga
        tokens.pop(0)


def _node(tokens: list[str]) -> NodeSpec:
    name = tokens.pop(0)
    value: str | None = None
    inner: Saga | None = None
    after: list[str] | None = None
    params_from = ""
    retry, undo_retry, undo = DEFAULT_RETRY, DEFAULT_UNDO_RETRY, UndoPolicy.ACTION
    deadline: Deadline | None = None
    waits = ""
    time_s = 0.0
    called = name
    while tokens[0] and tokens[0] in "=(*/@[?~!^:":
        match tokens.pop(0):
            case ":":
                called = tokens.pop(0)
                while (tokens[0] and tokens[0] in "@=") or called[-1] in "@=":
                    called += tokens.pop(0)
            case "?":
                waits = "signal"
                if tokens[0][:1].isdigit():
                    deadline = _deadline(tokens.pop(0))
            case "~":
                waits, time_s = "timer", float(tokens.pop(0))
            case "!":
                undo = _UNDO[tokens.pop(0)]
            case "^":
                deadline = _deadline(tokens.pop(0))
            case "=":
                value = tokens.pop(0)
            case "(":
                inner = _saga(tokens, name)
                assert tokens.pop(0) == ")"
            case "*":
                retry = RetryPolicy(max_attempts=int(tokens.pop(0)))
            case "/":
                undo_retry = RetryPolicy(max_attempts=int(tokens.pop(0)))
            case "@":
                params_from = tokens.pop(0)
            case "[":
                after = []
                while tokens[0] != "]":
                    after.append(tokens.pop(0))
                tokens.pop(0)
    if value is not None:
        return constant(name, json.loads(value), after=after)
    if inner is not None:
        return subsaga(name, inner, params_from=params_from, after=after)
    if waits:
        return signal(name, deadline=deadline, after=after) if waits == "signal" else timer(name, time_s, after=after)
    return action(name, called, after=after, retry=retry, undo_retry=undo_retry, undo=undo, deadline=deadline)


def _deadline(text: str) -> Deadline:
    return Deadline(float(text.removesuffix("p")), OnDeadline.PAUSE if text.endswith("p") else OnDeadline.FAIL)
