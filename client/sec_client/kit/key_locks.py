"""Locks of idempotency keys between processes on one machine that share a SQLite file: bytes of a file beside it."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from sec_client.kit.store import StoreError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FIRST_POLL_S, LONGEST_POLL_S = 0.002, 0.05
"""How often a lock is tried that another process has."""
_OPENING = 1 << 56
"""The byte that is held while the store is opened. Those of the keys are below."""

_open_files: set[Path] = set()


class FileLocks:
    """Of one store, in the file `<path>-keys`. The locks of a process that dies are dropped by the system. On Windows there are none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1

    @contextmanager
    def opening(self) -> Iterator[None]:
        """While inside, no other process opens the store. Raises `StoreError` when it is open in this one, whose locks would be shared."""
        if self._path in _open_files:
            raise StoreError(f'The store "{self._path}" is open already in this process: give each server a file of its own.')
        if fcntl is not None:
            try:
                self._file = os.open(f"{self._path}-keys", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as e:
                raise StoreError(f'The store "{self._path}" cannot be opened: {e}.') from e
            fcntl.lockf(self._file, fcntl.LOCK_EX, 1, _OPENING)
        _open_files.add(self._path)
        try:
            yield
        except BaseException:
            self.close()
            raise
        if fcntl is not None:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _OPENING)

    def close(self) -> None:
        """Drops all locks. May be repeated."""
        if self._file >= 0 or fcntl is None:
            _open_files.discard(self._path)
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[None]:
        """While inside, no other process is inside with the same key."""
        if fcntl is None or self._file < 0:
            yield
            return
        file, offset = self._file, lock_number(key)
        pause_s = FIRST_POLL_S
        while not _try_lock(file, offset):
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_POLL_S)
        try:
            yield
        finally:
            if self._file == file:
                fcntl.lockf(file, fcntl.LOCK_UN, 1, offset)


def lock_number(key: str) -> int:
    """What stands for a key where locks have numbers: 56 bits."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7])


def _try_lock(file: int, offset: int) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
    except (BlockingIOError, PermissionError):
        return False
    return True
