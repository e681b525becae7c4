"""The live view of a saga, whose actions report what is in no log."""

import asyncio
import io
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from rich.console import Console
from sec_client import NodeState, NodeView, Progress, SagaState, SagaSummary, SagaView, aio
from secctl import live, render, shapes

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def copying(progress: Progress | None, state: SagaState = SagaState.RUNNING) -> SagaView:
    node = NodeView("disk", "", NodeState.DONE if state.ended else NodeState.WORKING, action="copy", progress=progress)
    return SagaView(SagaSummary("s1", "backup", state), nodes=(node,))


class FakeClient:
    """Answers one view after the other. Its saga's log never grows."""

    def __init__(self, *views: SagaView) -> None:
        self._views = list(views)

    async def get(self, saga_id: str) -> SagaView:
        return self._views.pop(0)

    async def watch(self, saga_id: str, from_sequence: int) -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield


async def test_reports_are_painted_although_the_log_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_REPORTS_PAUSE_S", 0.001)
    monkeypatch.setattr(live, "_LEAST_PAUSE_S", 0.0)
    views = (
        copying(None),
        copying(Progress(0.4, "40 of 100 GB", NOON)),
        copying(Progress(None, "", NOON)),
        copying(None, SagaState.DONE),
    )
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=100, color_system=None)
    last = await live.follow(cast("aio.Client", FakeClient(*views)), "s1", console)
    assert last.state is SagaState.DONE
    for line in ("working: copy, produces", ", 40%: 40 of 100 GB", ", at work", "done: copy"):
        assert line in shown.getvalue()


def test_progress_is_shown() -> None:
    view = copying(Progress(0.404, "copied\n40 of 100 GB", NOON))
    assert '└─ working: copy, produces "disk", 40%: copied 40 of 100 GB\n' in str(render.tree(view))
    assert shapes.saga(view)["nodes"][0]["progress"] == {
        "fraction": 0.404,
        "message": "copied\n40 of 100 GB",
        "time": "2026-03-01T12:00:00.000000Z",
    }
    assert shapes.saga(copying(None))["nodes"][0]["progress"] is None
