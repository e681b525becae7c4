"""What can be checked of the deployment files without the programs that they are for."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from docs_support import ROOT

from sec import __version__
from sec.cli import main as sec
from sec.dev.cluster import DevCluster
from sec.dev.etcd import EmbeddedEtcd
from sec.store.etcd.versions import sound

DEPLOY = ROOT / "deploy"
OPTIONS = {opt: p for p in sec.commands["node"].params for opt in p.opts}
VARIABLES = {f"SEC_NODE_{str(p.name).upper()}" for p in sec.commands["node"].params}
IMAGE = f"sec-cluster:{__version__}"


@dataclass(frozen=True, slots=True)
class Probe:
    """A command that is run again and again."""

    command: list[str]
    timeout_s: int
    interval_s: int


@pytest.fixture(scope="module")
def kubernetes() -> dict[str, Any]:
    """The objects, as "kind/name"."""
    objects = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "sec.yaml").read_text()))
    return {f"{o['kind']}/{o['metadata']['name']}": o for o in objects}


def container(kubernetes: dict[str, Any]) -> dict[str, Any]:
    (found,) = kubernetes["StatefulSet/sec"]["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def check_command(arguments: list[str]) -> None:
    """That these are a command of `sec` and options that it has. Values with placeholders are not looked into."""
    assert arguments[0] == "node"
    context = click.Context(sec.commands["node"], info_name="node")
    sec.commands["node"].make_parser(context).parse_args([re.sub(r"\$\(\w+\)", "x", a) for a in arguments[1:]])


def test_kubernetes_objects_fit_together(kubernetes: dict[str, Any]) -> None:
    stateful_set = kubernetes["StatefulSet/sec"]["spec"]
    labels = stateful_set["template"]["metadata"]["labels"]
    for name in ("Service/sec", "Service/sec-nodes"):
        assert kubernetes[name]["spec"]["selector"] == labels
        assert kubernetes[name]["spec"]["ports"][0]["targetPort"] == "grpc"
    assert stateful_set["selector"]["matchLabels"] == labels
    budget = kubernetes["PodDisruptionBudget/sec"]["spec"]
    assert budget["selector"]["matchLabels"] == labels
    assert budget["minAvailable"] < stateful_set["replicas"] == 3
    assert f"Service/{stateful_set['serviceName']}" in kubernetes
    assert container(kubernetes)["ports"] == [{"name": "grpc", "containerPort": 7450}]
    assert container(kubernetes)["envFrom"] == [{"configMapRef": {"name": "sec"}}]
    assert container(kubernetes)["image"] == IMAGE


def test_kubernetes_sets_what_a_node_knows(kubernetes: dict[str, Any]) -> None:
    check_command(container(kubernetes)["args"])
    assert set(kubernetes["ConfigMap/sec"]["data"]) <= VARIABLES
    assert {e["name"] for e in container(kubernetes)["env"]} - {"POD_NAME", "POD_NAMESPACE"} <= VARIABLES


@pytest.fixture(scope="module")
def probes(kubernetes: dict[str, Any]) -> dict[str, Probe]:
    """What asks an SEC node how it is, in the files."""
    found = {}
    for name in ("liveness", "readiness"):
        probe = container(kubernetes)[f"{name}Probe"]
        found[f"Kubernetes' {name}"] = Probe(probe["exec"]["command"], probe["timeoutSeconds"], probe["periodSeconds"])
    services = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())["services"]
    (check,) = {json.dumps(service["healthcheck"]) for name, service in services.items() if name.startswith("sec-")}
    asked = json.loads(check)
    assert asked["test"][0] == "CMD"
    found["Compose"] = Probe(asked["test"][1:], int(asked["timeout"][:-1]), int(asked["interval"][:-1]))
    pattern = r"^HEALTHCHECK --interval=(\d+)s --timeout=(\d+)s .* CMD (\[.+\])$"
    ((interval, timeout, command),) = re.findall(pattern, (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    found["Dockerfile"] = Probe(json.loads(command), int(timeout), int(interval))
    return found


def test_the_probes_ask_where_a_node_listens_and_have_time_to_start(kubernetes: dict[str, Any], probes: dict[str, Probe]) -> None:
    health = sec.commands["health"]
    (default,) = [str(p.default) for p in health.params if p.name == "address"]
    assert default.rpartition(":")[2] == str(container(kubernetes)["ports"][0]["containerPort"])
    assert f'"--listen", "0.0.0.0:{default.rpartition(":")[2]}"' in (DEPLOY / "Dockerfile").read_text()
    for name, probe in probes.items():
        assert probe.command[:2] == ["sec", "health"], name
        context = health.make_context("health", probe.command[2:])
        assert context.params["address"] == default, name
        assert context.params["timeout"] + 5 <= probe.timeout_s < probe.interval_s, name
    live = {name for name, probe in probes.items() if "--live" in probe.command}
    assert live == {"Kubernetes' liveness", "Dockerfile"}  # these two lead to a restart; the others must tell who is not ready


def test_liveness_takes_any_answer_and_readiness_only_serving(probes: dict[str, Probe], etcd: EmbeddedEtcd, tmp_path: Path) -> None:
    def good(address: str) -> set[str]:
        """The kinds of probes that find it good there. All of one kind must be of one opinion."""
        opinions = set()
        for probe in probes.values():
            command = [sys.executable, "-m", *probe.command, "--timeout=1", address]
            status = subprocess.run(command, env=environment, capture_output=True, timeout=60).returncode
            opinions.add(("live" if "--live" in probe.command else "ready", status == 0))
        assert len(opinions) == 2, opinions
        return {kind for kind, is_good in opinions if is_good}

    environment = {name: value for name, value in os.environ.items() if not name.startswith("SEC_HEALTH_")}
    with DevCluster(tmp_path, nodes=1, etcd_endpoints=etcd.endpoints, prefix=f"/deploy/{os.getpid()}") as cluster:
        address = cluster.address("sec-1")
        assert good(address) == {"live", "ready"}
        cluster.pause("sec-1")
        assert good(address) == set()
        cluster.resume("sec-1")
    assert good(address) == set()
    log = tmp_path / "without-etcd.log"
    command = [sys.executable, "-m", "sec", "node", f"--listen={address}", "--etcd=127.0.0.1:1", "--name=alone"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        end = time.monotonic() + 30
        while "serves on" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.02)
        assert good(address) == {"live"}
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def test_the_variables_for_tls_are_those_of_the_command() -> None:
    known = {f"SEC_HEALTH_{str(p.name).upper()}" for p in sec.commands["health"].params}
    for name in ("README.md", "Dockerfile", "kubernetes/sec.yaml", "../docs/operations.md"):
        named = set(re.findall(r"SEC_HEALTH_[A-Z_]+", (DEPLOY / name).read_text()))
        assert named, name
        assert named <= known, name


def test_compose_starts_a_sound_etcd_and_nodes_that_know_their_options() -> None:
    services = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())["services"]
    assert len(services) == 6
    ports = []
    for name, service in services.items():
        if name.startswith("etcd-"):
            assert sound(service["image"].rpartition(":v")[2])
            assert service["environment"]["ETCD_NAME"] == name
            assert f"{name}=http://{name}:2380" in service["environment"]["ETCD_INITIAL_CLUSTER"]
        else:
            check_command(service["command"])
            assert service["image"] == IMAGE
            ports += service["ports"]
            advertised = service["command"][service["command"].index("--advertise") + 1]
            assert f"{advertised}:7450" in service["ports"]
    assert len(set(ports)) == 3


def test_the_image_is_built_from_what_is_there() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    copied = [name for line in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, flags=re.MULTILINE) for name in line.split()]
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert copied
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}" in ignored
    assert f"-t {IMAGE} ." in dockerfile


def test_the_systemd_settings_are_those_of_a_node() -> None:
    example = (DEPLOY / "systemd" / "sec-node.env.example").read_text()
    assert set(re.findall(r"^#?([A-Z_]+)=", example, flags=re.MULTILINE)) <= VARIABLES


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_the_systemd_unit_is_one(tmp_path: Path) -> None:
    # The program is looked for by the check, so that it has to be one that is there.
    unit = tmp_path / "sec-node.service"
    text = (DEPLOY / "systemd" / "sec-node.service").read_text()
    assert "ExecStart=/opt/sec/bin/sec node\n" in text
    settings = tmp_path / "sec-node.env"
    settings.write_text("")
    unit.write_text(text.replace("/opt/sec/bin/sec", sys.executable).replace("/etc/sec/sec-node.env", str(settings)))
    result = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60)
    complaints = [line for line in result.stderr.splitlines() if "sec-node" in line]
    assert complaints == []
    assert result.returncode == 0, result.stderr
