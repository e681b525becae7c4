"""An action server in a process of its own, whose effects are rows of a SQLite inventory: run by the tests of whole clusters.

    python effects_server.py FOLDER SEC_ADDRESSES

Its only action is "step". The saga's params steer it: `fail` and `undo_fail` list nodes that fail (`fail_once` and `undo_fail_once`: at the first
call), `hold` and `undo_hold` nodes that wait
until the file FOLDER/gate exists. Effect, journal and the kit's marker are written in one transaction.
"""

import asyncio
import sys
from pathlib import Path

from sec_client.kit import ActionFailed, ActionServer, Call, SqliteStore

FOLDER = Path(sys.argv[1])
server = ActionServer("effects", store=SqliteStore(FOLDER / "effects.db"), max_concurrency=1_000)


@server.action("step")
async def do(call: Call) -> str:
    await _steer(call, "hold", "fail")
    db = await call.open_db()
    db.execute("CREATE TABLE IF NOT EXISTS inventory (key TEXT PRIMARY KEY, saga_id TEXT, node TEXT)")
    db.execute("CREATE TABLE IF NOT EXISTS journal (key TEXT, phase TEXT, saga_id TEXT, node TEXT, epoch INTEGER)")
    db.execute("INSERT INTO inventory VALUES (?, ?, ?)", (call.key, call.saga_id, call.node))
    db.execute("INSERT INTO journal VALUES (?, 'do', ?, ?, ?)", (call.key, call.saga_id, call.node, call.epoch))
    return call.node


@do.undo
async def undo(call: Call) -> None:
    await _steer(call, "undo_hold", "undo_fail")
    db = await call.open_db()
    db.execute("DELETE FROM inventory WHERE key = ?", (call.key,))
    db.execute("INSERT INTO journal VALUES (?, 'undo', ?, ?, ?)", (call.key, call.saga_id, call.node, call.epoch))


async def _steer(call: Call, hold: str, fail: str) -> None:
    params = call.params or {}
    if call.node in params.get(hold, ()):
        (FOLDER / f"{call.saga_id}.{call.node}.{call.phase}.{call.epoch}").touch()
        while not (FOLDER / "gate").exists():  # noqa: ASYNC110 # a file sets no event
            await asyncio.sleep(0.01)
    once = FOLDER / f"{call.saga_id}.{call.node}.failed"
    if call.node in params.get(f"{fail}_once", ()) and not once.exists():
        once.touch()
        raise ActionFailed(f"{call.node} does not work this time")
    if call.node in params.get(fail, ()):
        raise ActionFailed(f"{call.node} does not work")


if __name__ == "__main__":
    server.run("127.0.0.1:0", sec=sys.argv[2])
