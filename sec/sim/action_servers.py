"""Action servers of a run, and the way to them: calls and answers are delayed, lost, delivered twice, or long after everybody forgot them."""

import asyncio
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from sec_model import Payload

from sec.core.records import Fault, SecNodeName
from sec.dispatch.calls import Answer, Answered, Busy, Call, Pending, StaleEpoch, Tell, Unanswered, told
from sec.dispatch.directory import Directory
from sec.sim.definitions import offers
from sec.sim.effects import Refused
from sec.sim.loop import WORLD, SimLoop
from sec.sim.network import Weather
from sec.store.mirror import Mirror

MAX_RELEASES = 3

if TYPE_CHECKING:
    from sec.sim.world import World


class ActionServers:
    """What is common to the action servers: their network, and whether they can be reached."""

    def __init__(self, loop: SimLoop, rng: Random, weather: Weather) -> None:
        self.loop = loop
        self.rng = rng
        self.weather = weather
        self.offering = True
        self.releases = 0
        """How many versions of each action have come since the start."""
        self.directories: list[SimDirectory] = []
        self.first_s: dict[tuple[str, str], float] = {}
        """When each node of a saga was called first."""

    def later(self, delay_s: float, callback: Callable[[], object]) -> None:
        self.loop.call_later(delay_s, callback, context=WORLD)

    def offer(self, offering: bool) -> None:
        self.offering = offering
        self.releases += offering and self.releases < MAX_RELEASES
        for directory in self.directories:  # those of killed processes too, which get no turn
            self.loop.call_soon(directory.refresh, context=directory.process_context.copy())


class SimDirectory(Directory):
    """The directory of one SEC node: every action is offered, unless nothing is; whenever they come back there is another version of each."""

    def __init__(self, registrations: Mirror, world: "World", name: str) -> None:
        super().__init__(registrations, (), None, max_output_bytes=0, max_calls=0)
        self._world = world
        self._name = SecNodeName(name)
        self._asked = frozenset(name for saga in world.sagas.values() for name in saga.graph.action_names())
        self.process_context = world.processes[-1].context
        world.servers.directories.append(self)
        self.refresh()

    def refresh(self) -> None:
        """Looks at what can be reached now."""
        servers = self._world.servers
        self.offered = offers(self._asked, servers.releases) if servers.offering else frozenset()
        for listener in self._listeners:
            listener()

    def call(self, call: Call, tell: Tell) -> Pending:
        self._world.dispatched(self._world.members[self._name], call)
        return told(asyncio.get_running_loop().create_task(self._answer(call)), tell)

    async def _answer(self, call: Call) -> Answer:
        world, servers = self._world, self._world.servers
        rng, weather = servers.rng, servers.weather
        plan = world.sagas[call.saga_id].plan
        first_s = servers.first_s.setdefault((call.saga_id, call.node), servers.loop.time())
        if servers.loop.time() - first_s < plan.busy.get(call.node, 0.0):
            await asyncio.sleep(self._delay_s())
            return Busy()
        answer: asyncio.Future[Answer] = servers.loop.create_future()
        saga = world.sagas[call.saga_id]

        def arrive(listening: bool) -> None:
            try:
                result: Payload | Fault | None = saga.server.call(call.idempotency_key, call.phase, call.epoch)
            except Refused:
                reply: Answer = StaleEpoch("a later owner has called")
            else:
                reply = Answered(result)
            world.note("servers", f"{call.phase.value} of {call.node} of {call.saga_id}, epoch {call.epoch}: {reply}")
            if listening and rng.random() >= weather.lost_answers * 3:
                servers.later(self._delay_s(), lambda: _settle(answer, reply))

        lost = rng.random() < weather.lost_calls * 3
        if not lost:
            servers.later(self._delay_s() + saga.plan.slow.get(call.node, 0.0), lambda: arrive(True))
        if (lost or weather.late) and rng.random() < 0.3:
            servers.later(rng.uniform(0.1, 3.5), lambda: arrive(False))
        world.at_moment(self._name, "a call is made")
        try:
            async with asyncio.timeout(call.timeout_s):
                return await answer
        except TimeoutError:
            return Unanswered(Fault("No answer came in time.", "deadline_exceeded"))
        finally:
            world.at_moment(self._name, "a call has been answered")

    def _delay_s(self) -> float:
        rng = self._world.servers.rng
        late = self._world.servers.weather.late
        return rng.uniform(0.1, 1.0) if late and rng.random() < late else rng.uniform(0.0005, 0.01)


def _settle(answer: "asyncio.Future[Answer]", reply: Answer) -> None:
    if not answer.done():
        answer.set_result(reply)
