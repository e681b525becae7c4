"""The pytest plugin: the fixtures `sagas` and `action_servers`, and a report of the sagas of a test that fails.

Every run of pytest loads it where this project is installed, so it imports nothing that is not needed until a fixture is. What it stands on is `sec_testing`.
"""

from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sec_client.kit import ActionServer
    from sec_testing import SagaTester

FIXTURE = "sagas"


@pytest.fixture
def action_servers() -> "Sequence[ActionServer]":
    """The action servers (`sec_client.kit.ActionServer`) of the `sagas` of a test. Override it in a conftest.py, or in a test's module; there are none otherwise."""
    return ()


@pytest.fixture
def sagas(action_servers: "Sequence[ActionServer]") -> "Iterator[SagaTester]":
    """Runs sagas against the `action_servers` in this process and in virtual time: a `sec_testing.SagaTester`, which ends with the test."""
    try:
        from sec_testing import SagaTester
    except ModuleNotFoundError as error:
        pytest.fail(f"The fixture sagas needs more than is installed ({error}): pip install 'sec-cluster[testing]'.", pytrace=False)
    with SagaTester(*action_servers) as tester:
        yield tester


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: "pytest.CallInfo[None]"
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tells what happened to the sagas of a test that fails."""
    report = yield
    tester: SagaTester | None = getattr(item, "funcargs", {}).get(FIXTURE)
    if report.when == "call" and report.failed and tester is not None and (story := tester.story()):
        report.sections.append(("Sagas of this test", story))
    return report
