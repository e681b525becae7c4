"""What an SEC node logs, in a form for programs."""

import asyncio
import json
import sys


async def test_a_node_logs_as_json_when_it_is_told_to() -> None:
    command = ["-m", "sec", "node", "--name", "n1", "--listen", "127.0.0.1:0", "--etcd", "127.0.0.1:1", "--log-format", "json"]
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stderr=asyncio.subprocess.PIPE)
    try:
        assert process.stderr is not None
        line = json.loads(await process.stderr.readline())
    finally:
        process.terminate()
        await process.communicate()
    assert line["message"].startswith('SEC node "n1" ')
    assert " serves on 127.0.0.1:" in line["message"]
    assert (line["sec_node"], line["level"], line["logger"]) == ("n1", "info", "sec.run")
    assert line["time"].endswith("Z")
