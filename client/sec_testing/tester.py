"""Runs sagas against action servers in one process: `SagaTester`."""

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self

from sec_client import Deadline, Definition, Saga
from sec_client.kit import ActionServer, SqliteStore, Store
from sec_model import compile_graph
from sec_model.builder import Seconds
from sec_model.versions import fits, not_offered

from sec_testing.all_or_none import EachFault, Submitted, assert_all_or_none, fault_points
from sec_testing.faults import AnyFault, Crash, Fault
from sec_testing.run import SagaRun
from sec_testing.servers import Script
from sec_testing.world import World

StoreFactory = Callable[[], Store]
SHOWN_RUNS = 5


class SagaTester:
    """A cluster in this process, without etcd, sockets or waiting: real SEC nodes in virtual time, and these action servers of the kit.

        with SagaTester(travel.server) as sagas:
            run = sagas.run(trip, {"guest": "Ada"}, Fail("payment"))
            assert run.undone

    Nothing of it waits in real time, so that nothing is to be awaited: it is used in the same way in plain tests and in async ones. Its event loop has no I/O. Async
    handlers run on it, and plain ones on threads, while all else stands still.

    Each action server gets a store of its own, which is gone with the tester: a new file where it has a `SqliteStore`, a `MemoryStore` where it has that. A store of another
    kind is used as it is; `stores` has what makes others, by the names of the servers. `nodes` is how many SEC nodes there are, of which one can die when
    there are two. `start` is what the wall clock says in the beginning (None: the present). With the same `seed` all random delays are the same.
    """

    def __init__(
        self,
        *servers: ActionServer,
        stores: Mapping[str, StoreFactory] | None = None,
        nodes: int = 2,
        seed: int = 0,
        start: datetime | None = None,
    ) -> None:
        if nodes < 1:
            raise ValueError(f"A cluster has at least one SEC node, not {nodes}.")
        if start is not None and start.tzinfo is None:
            raise ValueError(f"The start {start} has no time zone: give one, such as datetime.UTC.")
        self._servers = list(servers)
        self._stores = dict(stores or {})
        self._nodes = nodes
        self._seed = seed
        self._start = start
        self._made: World | None = None
        self._runs: list[SagaRun] = []
        self._shown = ""
        self._numbers = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends everything, and removes the stores. May be repeated; used again, it begins anew."""
        made, self._made = self._made, None
        self._runs.clear()
        if made is not None:
            made.close()

    def serve(self, *servers: ActionServer) -> Self:
        """Has more action servers. Raises `ValueError` for a name that is taken, or actions that cannot be called as they are declared."""
        for server in servers:
            if self._made is not None:
                self._made.serve(server)
            self._servers.append(server)
        return self

    def fresh(self) -> "SagaTester":
        """Another one that is made like this one, in which nothing has happened yet."""
        return SagaTester(*self._servers, stores=self._stores, nodes=self._nodes, seed=self._seed, start=self._start)

    @property
    def _world(self) -> World:
        if self._made is None:
            start = self._start or datetime.now(UTC)
            self._made = World(self._servers, self._stores, self._nodes, self._seed, start)
        return self._made

    # sagas

    def run(self, saga: Saga | Definition, params: Any = None, *faults: AnyFault, **terms: Any) -> SagaRun:
        """Submits a saga, has these faults strike it, and lets time pass until it rests (see `SagaRun.wait`). `terms` are those of `submit`."""
        return self.submit(saga, params, *faults, **terms).wait()

    def submit(
        self,
        saga: Saga | Definition,
        params: Any = None,
        *faults: AnyFault,
        signals: Mapping[str, Any] | None = None,
        start: bool = True,
        saga_id: str = "",
        labels: Mapping[str, str] | None = None,
        deadline: Seconds | Deadline | None = None,
    ) -> SagaRun:
        """Submits a saga, and starts it unless `start` is false. `signals` are sent to it in advance: events that its signal nodes find when they are reached.

        Without params, faults may stand in their place.

        Raises `ValueError` when no action server here offers one of its actions, or it has no node that a fault names; `InvalidDefinition`
        when it is not valid or does not fit its actions; and what `Client.submit` raises.
        """
        if isinstance(params, Fault | Crash):
            faults, params = (params, *faults), None
        self._numbers += 1
        definition = saga.build() if isinstance(saga, Saga) else saga
        graph = compile_graph(definition)
        saga_id = saga_id or f"{definition.name}-{self._numbers}"
        world = self._world
        if missing := not_offered(graph.action_names(), world.servers.action_names()):
            raise ValueError(f'Saga "{saga_id}" calls {", ".join(missing)}, which no action server of this test offers.')
        called = {offer for offer in world.servers.action_names() if any(fits(asked, offer) for asked in graph.action_names())}
        _check_names(faults, {node.path for node in graph.nodes}, called, saga_id)
        if saga_id in world.nodes.sagas:
            raise ValueError(f'Saga "{saga_id}" has been submitted already in this test: give each an id of its own, or none.')
        world.nodes.follow(saga_id, graph, [f for f in faults if isinstance(f, Crash)])
        world.servers.scripts[saga_id] = Script(tuple(f for f in faults if isinstance(f, Fault)))
        run = SagaRun(self, world, saga_id, faults)
        client, at_once = world.client, start and not signals
        world.drive(client.submit(definition, params=params, saga_id=saga_id, labels=labels, start=at_once, deadline=deadline))
        self._runs.append(run)
        for node, value in (signals or {}).items():
            run.signal(node, value)
        return run.start() if start and not at_once else run

    # faults

    def fault_points(self, saga: Saga | Definition, params: Any = None, **terms: Any) -> list[tuple[AnyFault, ...]]:
        """The faults that `each_fault` has strike this saga, one after the other: for `pytest.mark.parametrize(..., ids=told)`. Runs the saga to find them.

        `terms` are those of `submit`, and `before` and `having` as of `each_fault`.
        """
        return fault_points(self, Submitted(saga, params, terms))

    def each_fault(
        self,
        saga: Saga | Definition,
        params: Any = None,
        *,
        before: Callable[[], object] | None = None,
        having: Sequence[AnyFault] = (),
        points: Iterable[tuple[AnyFault, ...]] | None = None,
        **terms: Any,
    ) -> EachFault:
        """Runs a saga again and again, and in each run something else goes wrong: `for run in sagas.each_fault(trip, params): …`, or `async for`.

        First nothing does. Then each of its calls fails, arrives late, twice, or not at all, or its answer is lost; the same with each undo, once the last action has failed;
        and its owner dies before and after each write to its log. Each run has a cluster and stores of its own, which are gone when the next one begins. Whatever else the
        handlers change is yours to set back: in `before`, which is called before each run.

        `having` are faults that all runs have. `points` are those to go through (None: `fault_points`). `terms` are those of `submit`.
        """
        return EachFault(self, Submitted(saga, params, {**terms, "before": before, "having": having}), points)

    def assert_all_or_none(
        self,
        saga: Saga | Definition,
        params: Any = None,
        *,
        world: "Callable[[SagaTester], Any]",
        before: Callable[[], object] | None = None,
        having: Sequence[AnyFault] = (),
        points: Iterable[tuple[AnyFault, ...]] | None = None,
        **terms: Any,
    ) -> int:
        """Runs a saga as `each_fault` does, and asserts after each run that the world has all of its effects or none. Answers how many runs there were.

        `world` is called with the tester of a run, and answers what there is of the effects, as something that can be compared: rows, numbers, sets. What it answers before a run is
        none of them; what it answers after the first run, in which nothing goes wrong, is all of them. A saga that is done must leave all, one that is undone
        none, and no saga may be stuck or go on for ever. Raises `AssertionError`, with every fault after which that was not so.
        """
        return assert_all_or_none(self, Submitted(saga, params, {**terms, "before": before, "having": having}), points, world)

    # the world

    @property
    def now(self) -> datetime:
        """What the wall clock of the cluster says."""
        return self._world.now()

    def advance(self, time: float | timedelta) -> Self:
        """Lets so much time pass: seconds, or a `timedelta`. Answers itself."""
        self._world.drive(asyncio.sleep(time.total_seconds() if isinstance(time, timedelta) else time))
        return self

    def away(self, server_name: str, for_s: float) -> Self:
        """An action server takes no calls for so long, from now on. Answers itself. Raises `ValueError` for a name that is not known."""
        self._world.servers.away(server_name, for_s)
        return self

    def db(self, server_name: str) -> sqlite3.Connection:
        """A connection to the SQLite file in which an action server keeps its marks and the effects of `call.db`. Close it. Raises `ValueError` when it has none."""
        store = self._world.servers.store_of(server_name)
        if not isinstance(store, SqliteStore):
            raise ValueError(f'The action server "{server_name}" has no SQLite file: its store is a {type(store).__name__}.')
        return sqlite3.connect(store.path)

    def query(self, server_name: str, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """The rows that a query finds in that file, sorted: `sagas.query("travel", "SELECT what, guest FROM bookings")`.

        None where its table is not there yet: so ask for rows rather than for their number, which would be 0 or nothing.
        """
        with closing(self.db(server_name)) as db:
            try:
                return sorted(db.execute(sql, parameters).fetchall(), key=repr)
            except sqlite3.OperationalError as error:
                if "no such table" in str(error):
                    return []
                raise

    # reports

    def show(self, text: str) -> None:
        """Has `story` tell this, of a run that is not one of its own."""
        self._shown = text

    def story(self) -> str:
        """What happened to the last sagas, for people. The pytest plugin shows it of a test that fails."""
        told = [self._shown] if self._shown else []
        for run in self._runs[-SHOWN_RUNS:]:
            with suppress(Exception):  # a report must not hide what it reports on
                told.append(str(run))
        return "\n".join(told)


def _check_names(faults: Sequence[AnyFault], nodes: set[str], actions: set[str], saga_id: str) -> None:
    for fault in faults:
        if fault.node and fault.node not in nodes:
            raise ValueError(f'Saga "{saga_id}" has no node "{fault.node}", of which it was said that {fault}.')
        if isinstance(fault, Fault) and fault.action and not any(fits(fault.action, action) for action in actions):
            raise ValueError(f'Saga "{saga_id}" does not call the action "{fault.action}", of which it was said that {fault}.')
