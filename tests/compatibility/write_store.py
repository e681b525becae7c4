"""Writes down the store of a cluster of this version, with sagas in every state, for later versions to read.

Run once for each release, at its commit: `PYTHONPATH=tests python tests/compatibility/write_store.py tests/compatibility/released/VERSION.jsonl`.
"""

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any

from inprocess_support import World, chain, cluster
from sec_client import SagaState
from waiting_support import eventually, until

from sec.store.kv import NO_LEASE, Get, prefix_end

SAGAS = b"/sec/v1/00/"


async def main() -> list[dict[str, Any]]:
    """The keys of the store with the revisions at which they were written, the oldest first."""
    world = World(
        do={"fails": ["fail"], "breaks": ["fail"], "half": ["unknown", "hold"]},
        undo={"sticks": ["fail"]},
    )
    async with cluster("sec-1") as made, made.client() as client:
        await made.serve(world.server())
        for saga_id, nodes in {
            "done": ("one", "two"),
            "undone": ("one", "fails"),
            "stuck": ("sticks", "breaks"),
            "running": ("one", "half", "last"),
        }.items():
            await client.submit(
                chain(*nodes, name=saga_id), params={"of": "an older node"}, labels={"kept": "yes"}, saga_id=saga_id
            )
        await client.submit(chain("one", "two", name="created"), saga_id="created", start=False)
        states = {"done": SagaState.DONE, "undone": SagaState.UNDONE, "stuck": SagaState.STUCK}

        async def settled() -> bool:
            return all([(await client.get(saga_id)).state is state for saga_id, state in states.items()])

        await eventually(settled)
        await until(lambda: world.count("do", "half") == 2)
        found = made.etcd.get(Get(SAGAS, prefix_end(SAGAS)))
        world.gate.set()
    kept = [item for item in found.items if item.lease == NO_LEASE]  # what is leased goes with its node
    return [
        {"revision": i.mod_revision, "key": i.key.decode(), "value": base64.b64encode(i.value).decode()}
        for i in sorted(kept, key=lambda item: (item.mod_revision, item.key))
    ]


if __name__ == "__main__":
    written = asyncio.run(main())
    Path(sys.argv[1]).write_text("\n".join(json.dumps(line) for line in written) + "\n")
