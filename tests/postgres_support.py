"""A PostgreSQL server of the tests' own: found, started on a socket in a folder of its own, and stopped."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
import tenacity

MISSING = (
    "PostgreSQL was not found. On Debian and Ubuntu: apt-get update && apt-get install postgresql. "
    "Or name the folder that has initdb and postgres: SEC_POSTGRES=/usr/lib/postgresql/15/bin"
)
START_TIMEOUT_S = 30.0


def find_binaries() -> Path | None:
    """The folder with `initdb` and `postgres`."""
    named = os.environ.get("SEC_POSTGRES")
    debian = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int("0" + p.parent.name.partition(".")[0]), reverse=True
    )
    on_path = shutil.which("postgres")
    folders = [Path(named)] if named else [*debian, *([Path(on_path).resolve().parent] if on_path else [])]
    return next((f for f in folders if (f / "initdb").exists() and (f / "postgres").exists()), None)


class Postgres:
    """A cluster of PostgreSQL without fsync, that only this machine's users can reach, for as long as it is entered."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._folder = Path()
        self._process: subprocess.Popen[bytes] | None = None
        # PostgreSQL refuses to run as root.
        self._user = _unprivileged() if os.geteuid() == 0 else None

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="sec-pg-"))  # short, as the names of sockets have to be
        if self._user is not None:
            os.chown(self._folder, self._user.pw_uid, self._user.pw_gid)
        arguments = ["-D", str(self._folder / "data"), "-U", "tests", "-A", "trust", "-E", "UTF8", "--no-sync", "--locale=C"]
        made = subprocess.run([self._binaries / "initdb", *arguments], capture_output=True, text=True, **self._as_user())  # type: ignore[call-overload] # the type of the keywords is not one
        if made.returncode != 0:
            raise AssertionError(f"initdb ended with {made.returncode}: {made.stderr}")
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def _as_user(self) -> dict[str, object]:
        if self._user is None:
            return {"cwd": self._folder}
        return {"cwd": self._folder, "user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}

    def dsn(self, schema: str = "public") -> str:
        """How `psycopg.connect` reaches it; tables without a schema are in this one."""
        return f"host={self._folder} port=5432 user=tests dbname=postgres options='-c search_path={schema}'"

    def url(self, schema: str, driver: str = "psycopg") -> str:
        """The same for SQLAlchemy."""
        return f"postgresql+{driver}://tests@/postgres?host={self._folder}&port=5432&options=-c%20search_path%3D{schema}"

    def start(self) -> None:
        settings = ["-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=200"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(  # type: ignore[call-overload] # the type of the keywords is not one
                [self._binaries / "postgres", "-D", str(self._folder / "data"), "-k", str(self._folder), *settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **self._as_user(),
            )
        for attempt in tenacity.Retrying(
            stop=tenacity.stop_after_delay(START_TIMEOUT_S),
            wait=tenacity.wait_fixed(0.05),
            retry=tenacity.retry_if_exception_type(psycopg.OperationalError),
            reraise=True,
        ):
            with attempt:
                psycopg.connect(self.dsn()).close()

    def stop(self) -> None:
        """Breaks off all connections."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGINT)
            process.wait(30)

    def execute(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        """As somebody else, in a transaction of its own."""
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), values or None)
            return cursor.fetchall() if cursor.description else []


def _unprivileged() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise AssertionError("PostgreSQL does not run as root, and there is neither the user postgres nor nobody.")
