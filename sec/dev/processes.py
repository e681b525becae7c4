"""Child processes that cannot outlive us, ports that they can come back to, and waiting that serves plain and async code alike."""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

POLL_S = 0.02
FIRST_PORT, LAST_PORT = 15_000, 30_000
"""Below the range from which kernels take the ports of outgoing connections, so that a process can come back to its ports."""
LOG_TAIL_BYTES = 4000

# Asks the kernel to kill the process when the thread that started it is gone, then becomes the command. A program of its own and
# no `preexec_fn`, which is not safe in a process with threads.
_DIES_WITH_PARENT = """
import ctypes, os, sys
parent = int(sys.argv[1])
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
    if os.getppid() != parent:
        sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class NoFreePorts(Exception):
    """The loopback interface has not as many free ports as are wanted."""


def launch(command: Sequence[str], log: Path, *, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Starts a command (a full path first) that appends what it says to the file `log`.

    It is killed when the thread that called this ends, however that comes about (on Linux): call it in one that lasts, best the
    main one. It is in a session of its own: the Ctrl-C of the terminal is ours, and we stop it in order. `environment` None: ours.
    """
    wrapper = [sys.executable, "-I", "-S", "-c", _DIES_WITH_PARENT, str(os.getpid())]
    with log.open("ab") as output:
        return subprocess.Popen(
            [*wrapper, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=None if environment is None else dict(environment),
            start_new_session=True,
        )


def pause(process: subprocess.Popen[bytes]) -> None:
    """SIGSTOP: the process hangs, its connections stay. Returns when it has stopped; no call that comes later is answered."""
    if process.poll() is None:
        process.send_signal(signal.SIGSTOP)
        # A signal is on its way for a while. WNOWAIT leaves an exit for `Popen` to see.
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)


def has_stopped(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process has stopped by itself: whether it hangs since it sent itself SIGSTOP."""
    if process.poll() is not None:
        return False
    return os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None


def free_ports(wanted: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on now. Raises `NoFreePorts`."""
    candidates = iter(random.sample(range(FIRST_PORT, LAST_PORT), LAST_PORT - FIRST_PORT))
    chosen = list(islice(filter(is_free, candidates), wanted))
    if len(chosen) == wanted:
        return chosen
    raise NoFreePorts(f"There are not {wanted} free ports on the loopback interface between {FIRST_PORT} and {LAST_PORT}.")


def is_free(port: int) -> bool:
    """Nobody listens on this port of the loopback interface now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def log_tail(log: Path, start: int = 0) -> str:
    """The end of a log, of what was written from the byte `start` on."""
    try:
        return log.read_bytes()[start:][-LOG_TAIL_BYTES:].decode(errors="replace")
    except OSError as error:
        return f"(no log: {error})"


def wait(steps: Iterator[None]) -> None:
    """Runs steps that poll something to their end, blocking in between."""
    for _ in steps:
        time.sleep(POLL_S)


async def pace(steps: Iterator[None]) -> None:
    """`wait` that does not block the event loop."""
    for _ in steps:
        await asyncio.sleep(POLL_S)
