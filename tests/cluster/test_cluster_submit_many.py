"""Many sagas with one call, on a real cluster: also when the SEC node that is asked dies in the middle."""

import asyncio

import pytest
from cluster_support import Stage
from sec_client import Saga, SagaError, SagaNotFound, SagaState, Submission, SubmitResult, action, aio, submissions
from waiting_support import eventually

STEP = Saga("many").append(action("a", "step"))
SAGAS = 200


async def test_the_node_that_is_asked_dies_in_the_middle(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submissions, "MAX_SAGAS", 20)  # so that there is a middle
    given = [Submission(STEP, {}, f"submitted-together-{n}", {"test": "many"}) for n in range(SAGAS)]
    asked, *others = stage.cluster.names
    async with stage.client() as client, aio.Client([stage.cluster.address(name) for name in others]) as awake:
        submitting = asyncio.create_task(client.submit_many(given))

        async def begun() -> bool:
            try:
                return bool((await awake.get("submitted-together-0")).saga_id)
            except SagaNotFound:
                return False

        await eventually(begun)
        stage.cluster.kill(asked)
        results = await submitting
        assert not [r for r in results if isinstance(r, SagaError)]

        async def all_done() -> bool:
            return len([s async for s in awake.list(labels={"test": "many"}, states=[SagaState.DONE])]) == SAGAS

        await eventually(all_done)
        again = await awake.submit_many(given)
        assert again == [SubmitResult(f"submitted-together-{n}", False) for n in range(SAGAS)]
    assert stage.rows("SELECT count(*), count(DISTINCT saga_id) FROM inventory WHERE saga_id LIKE 'submitted-together-%'") == [
        (SAGAS, SAGAS)
    ]
