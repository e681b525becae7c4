"""Tests of sagas and of action servers that are written with the kit, in one process and in virtual time.

    with SagaTester(travel.server) as sagas:
        assert sagas.run(trip, {"guest": "Ada"}, Fail("payment")).undone

The SEC nodes are real: their core, their owners and drivers, their API, over a store in memory and the event loop of the simulator. The action servers are
the user's, called through the kit's own service and store. Only what is between them is not real: there are no sockets, and what is scripted goes wrong there.

faults        what can go wrong, as values, and the calls that were made
tester, run   what a test uses
all_or_none   a run for each fault
world         all of it together, driven from the test's thread
nodes         SEC nodes that die and come back
servers       action servers, and the way to them; `directory` is how an SEC node has them
asking        the client's way to the SEC nodes
loop          virtual time, with threads
"""

from sec_testing.faults import EVERY, Away, Crash, Delay, Die, Fail, Fault, LoseAnswer, LoseCall, Made, Repeat, Straggle, told
from sec_testing.run import SagaRun
from sec_testing.tester import SagaTester
from sec_testing.world import NotSettled

__all__ = [
    "EVERY",
    "Away",
    "Crash",
    "Delay",
    "Die",
    "Fail",
    "Fault",
    "LoseAnswer",
    "LoseCall",
    "Made",
    "NotSettled",
    "Repeat",
    "SagaRun",
    "SagaTester",
    "Straggle",
    "told",
]
