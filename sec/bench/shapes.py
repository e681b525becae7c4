"""The sagas that a bench runs, and what each of them needs at the least."""

from dataclasses import dataclass

from sec_model import Definition, Saga, action, subsaga

WORK, STEP, FAIL = "bench.work", "bench.step", "bench.fail"
"""Actions of `sec.bench.server`: one without an undo action, one with, and one that fails."""
MAX_SIZE = 10_000


@dataclass(frozen=True, slots=True)
class Shape:
    """`calls`: those that one saga makes, of actions and undo actions. `serial_calls`: those of them that must come one after the other; a saga needs one
    commit more than that."""

    name: str
    definition: Definition
    calls: int
    serial_calls: int


def shape(text: str) -> Shape:
    """The shape that is called so. Raises `ValueError` with a sentence.

    "chain:5": actions one after the other. "fan:20": actions beside each other, and one behind them. "fail:5": a chain whose last action fails, and
    which unwinds. "subs:2": between two actions, subsagas of two actions beside each other, and one more behind them.
    """
    kind, _, number = text.partition(":")
    size = int(number) if number.isdecimal() else 0
    if not 1 <= size <= MAX_SIZE:
        raise ValueError(f'"{text}" is no shape: after the colon stands how large it is, from 1 to {MAX_SIZE:,}, as in "chain:5".')
    saga = Saga(text.replace(":", "-"))
    match kind:
        case "chain":
            _chain(saga, size, WORK)
            return Shape(text, saga.build(), size, size)
        case "fan":
            saga.append_parallel(*(action(f"n{i}", WORK) for i in range(size))).append(action("end", WORK))
            return Shape(text, saga.build(), size + 1, 2)
        case "fail":
            _chain(saga, size - 1, STEP)
            saga.append(action("end", FAIL))
            return Shape(text, saga.build(), 2 * size - 1, 2 * size - 1)
        case "subs":
            pair = Saga("pair").append(action("a", WORK)).append(action("b", WORK))
            saga.append(action("begin", WORK)).append_parallel(*(subsaga(f"s{i}", pair) for i in range(size)))
            saga.append(subsaga("last", pair)).append(action("end", WORK))
            return Shape(text, saga.build(), 2 * size + 4, 6)
        case _:
            raise ValueError(f'"{text}" is no shape: there are chain:N, fan:N, fail:N and subs:N.')


def _chain(saga: Saga, size: int, name: str) -> None:
    for i in range(size):
        saga.append(action(f"n{i}", name))
