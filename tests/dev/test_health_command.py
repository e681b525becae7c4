"""`sec health` as probes run it: a process that asks processes."""

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from certificates_support import make_certificates
from click.testing import CliRunner
from dev_support import environment, has_said, until
from sec_client import Client

from sec.cli import main
from sec.dev.cluster import DevCluster
from sec.dev.etcd import EmbeddedEtcd
from sec.dev.processes import free_ports

SERVING = (0, "SERVING\n")
NOT_SERVING = (1, "NOT_SERVING\n")
NOT_SERVING_BUT_ALIVE = (0, "NOT_SERVING\n")
NO_ETCD = "--etcd=127.0.0.1:1"


def health(*arguments: str, **variables: str) -> tuple[int, str]:
    """The exit code, and what stands on standard output."""
    command = [sys.executable, "-m", "sec", "health", *arguments]
    found = subprocess.run(command, env=environment(**variables), capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in found.stderr, found.stderr
    return found.returncode, found.stdout


def no_answer(found: tuple[int, str], reason: str) -> bool:
    """It is exit code 2 and one line with this reason."""
    status, printed = found
    return status == 2 and printed.startswith("no answer: ") and reason in printed and printed.count("\n") == 1


@contextmanager
def process(log: Path, said: str, *arguments: str) -> Iterator[None]:
    """A Python module that runs, and has said in its log that it serves. It is killed in the end."""
    with log.open("wb") as output:
        started = subprocess.Popen(
            [sys.executable, "-m", *arguments], cwd=log.parent, stdout=output, stderr=output, env=environment()
        )
    try:
        until(lambda: has_said(log, said, started), f"it says {said!r}")
        yield
    finally:
        started.kill()
        started.wait()


def test_a_probe_loads_no_sec_node() -> None:
    """Probes run it every few seconds, in a container that is short of processor time perhaps."""
    command = [sys.executable, "-X", "importtime", "-m", "sec", "health", "127.0.0.1:1", "--timeout", "1"]
    told = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False).stderr
    loaded = {line.rpartition("|")[2].strip() for line in told.splitlines() if line.startswith("import time:")}
    assert "grpc" in loaded
    ours = {name for name in loaded if name.partition(".")[0] in ("sec", "sec_client", "sec_model", "sec_protos", "secctl")}
    commands = ("bench", "chaos", "debug", "dev", "health", "node", "sim", "tls")
    assert ours == {"sec", "sec.cli", *(f"sec.cli.{name}" for name in commands)}
    assert loaded.isdisjoint({"uvloop", "aetcd", "tenacity", "rich", "yaml", "graphviz"})


def test_a_node_that_serves_is_drained_hangs_and_is_gone(tmp_path: Path, etcd: EmbeddedEtcd) -> None:
    with DevCluster(tmp_path, nodes=1, etcd_endpoints=etcd.endpoints, prefix="/health") as cluster:
        address = cluster.address("sec-1")
        assert health(address) == SERVING
        assert health(address, "--live") == SERVING
        assert health(address, "--service", "") == SERVING
        assert health(address, "--service", "sec.v1.ActionServer") == (1, "SERVICE_UNKNOWN\n")
        assert health(address, "--service", "sec.v1.ActionServer", "--live") == (0, "SERVICE_UNKNOWN\n")
        assert health(address, https_proxy="http://127.0.0.1:1", http_proxy="http://127.0.0.1:1") == SERVING

        with Client(address) as client:
            client.drain("sec-1")
        until(lambda: health(address) == NOT_SERVING, "a drained node is NOT_SERVING")
        assert health(address, "--live") == NOT_SERVING_BUT_ALIVE
        with Client(address) as client:
            client.drain("sec-1", undo=True)
        until(lambda: health(address) == SERVING, "it serves again")

        cluster.pause("sec-1")
        begin = time.monotonic()
        for options in ([], ["--live"]):
            assert no_answer(health(address, "--timeout", "0.5", *options), f"nothing came from {address} within 0.5 s")
        assert time.monotonic() - begin < 20
        cluster.resume("sec-1")
        until(lambda: health(address) == SERVING, "it serves again")
    assert no_answer(health(address, "--live"), f"{address}: failed to connect")


def test_a_node_without_etcd_is_alive_and_does_not_serve(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    with process(tmp_path / "node.log", "serves on", "sec", "node", f"--listen={address}", NO_ETCD):
        assert health(address) == NOT_SERVING
        assert health(address, "--live") == NOT_SERVING_BUT_ALIVE
        assert health(address, SEC_HEALTH_LIVE="1") == NOT_SERVING_BUT_ALIVE


def test_nothing_listens() -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    for options in ([], ["--live"]):
        assert no_answer(health(address, *options), f"{address}: failed to connect")
    assert no_answer(health("nobody.invalid:7450", "--live", "--timeout", "2"), "nobody.invalid:7450")


def test_a_server_without_a_health_service_is_not_alive() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert no_answer(health(f"127.0.0.1:{port}", "--live"), "has no gRPC health service")
    finally:
        server.stop(None).wait()


def test_an_action_server(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    (tmp_path / "idle.py").write_text(
        "from sec_client.kit import ActionServer\n"
        'server = ActionServer("idle")\n'
        "@server.action(undo=None)\n"
        "def nothing(call):\n"
        "    pass\n"
    )
    with process(tmp_path / "server.log", address, "sec_client.kit", "idle:server", "--listen", address):
        assert health(address, "--service", "sec.v1.ActionServer") == SERVING
        assert health(address) == (1, "SERVICE_UNKNOWN\n")


def test_a_node_with_tls(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    address = f"127.0.0.1:{free_ports(1)[0]}"
    ca, cert, key = (f"{tmp_path}/{name}" for name in ("ca.pem", "client.pem", "client.key"))
    ours = ("--tls-ca", ca, "--tls-cert", cert, "--tls-key", key)
    served = (f"--tls-cert={tmp_path}/server.pem", f"--tls-key={tmp_path}/server.key", f"--tls-client-ca={ca}")
    with process(tmp_path / "node.log", "serves on", "sec", "node", f"--listen={address}", NO_ETCD, *served):
        assert health(address, *ours) == NOT_SERVING
        assert health(address, *ours, "--live", "--tls-name", "localhost") == NOT_SERVING_BUT_ALIVE
        variables = {"SEC_HEALTH_TLS_CA": ca, "SEC_HEALTH_TLS_CERT": cert, "SEC_HEALTH_TLS_KEY": key}
        assert health(address, "--live", **variables) == NOT_SERVING_BUT_ALIVE
        assert no_answer(health(address, "--live", SEC_HEALTH_TLS_NAME="other.example", **variables), "Hostname Verification")
        assert no_answer(health(address, "--live", *ours[2:]), "CERTIFICATE_VERIFY_FAILED")  # by the authorities of the system
        for too_little in ([], ["--tls-ca", ca]):
            assert no_answer(health(address, "--live", *too_little), "See --tls-ca and --tls-cert.")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["127.0.0.1"], '"127.0.0.1" is not of the form HOST:PORT.'),
        (["127.0.0.1:72986"], '"127.0.0.1:72986" is not of the form HOST:PORT.'),  # 7450 modulo 65,536
        (["127.0.0.1:0"], '"127.0.0.1:0" is not of the form HOST:PORT.'),
        (["--timeout", "0"], "0.0 is not in the range"),
        (["--tls-cert", __file__], "--tls-cert and --tls-key go together"),
        (["--tls-name", "n"], "--tls-name needs --tls-ca"),
    ],
)
def test_what_is_not_understood_is_exit_code_2(arguments: list[str], complaint: str) -> None:
    result = CliRunner().invoke(main, ["health", "--live", *arguments])
    assert result.exit_code == 2
    assert complaint in " ".join(result.output.split())
