"""`sec bench`: what it counts is what happens, and what it prints can be read by people and programs. How fast anything is stands in no test."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sec_testing import SagaTester

from sec.bench import run
from sec.bench.figures import Figures, quantile_ms
from sec.bench.server import Count, action_server
from sec.bench.shapes import shape
from sec.cli import main as sec
from sec.dev.cluster import DevCluster
from sec.dev.etcd import EmbeddedEtcd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "bench"))
from compare import ratios


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(sec, ["bench", *arguments], prog_name="sec")


@pytest.mark.parametrize("name", ["chain:1", "chain:5", "fan:20", "fail:1", "fail:5", "subs:1", "subs:3"])
def test_a_shape_makes_the_calls_that_it_says(name: str) -> None:
    one = shape(name)
    count = Count()
    with SagaTester(action_server(10, count)) as sagas:
        run = sagas.run(one.definition, b"params")
    assert len(run.calls) == count.ran == one.calls
    assert run.undone == name.startswith("fail")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--shape", "ring:5"], '"ring:5" is no shape'),
        (["--shape", "chain"], "after the colon stands how large it is"),
        (["--shape", "chain:0"], "from 1 to 10,000"),
        (["--in-flight", "1,none"], '"1,none" is no list of numbers'),
        (["--nodes", "0"], '"0" is no list of numbers'),
        (["--pid", "sec-1=none"], '"sec-1=none" names no process of this machine'),
        (["--pid", f"sec-1={os.getpid()}"], "name these by --sec"),
        (["--clusters", "2", "--cores", "1000"], "2 clusters of 1000 cores each need 2000"),
    ],
)
def test_what_cannot_be_measured_is_refused(options: Sequence[str], sentence: str) -> None:
    refused = invoke(*options)
    assert refused.exit_code == 2
    assert sentence in " ".join(refused.output.split())


def test_nodes_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "READY_S", 1.0)
    refused = invoke("--sec", "127.0.0.1:1", "--seconds", "0.1")
    assert refused.exit_code == 2
    assert "could not register itself at 127.0.0.1:1 within 1 s. Do these SEC nodes run?" in refused.output


def test_quantiles() -> None:
    assert [quantile_ms([0.001, 0.002, 0.003, 0.004], share) for share in (0.5, 0.99)] == [3, 4]
    assert quantile_ms([], 0.5) == 0


def test_a_row_without_what_could_not_be_seen() -> None:
    told = str(Figures("chain:5", 16, 10, 50, 1, 2, 3))
    assert told.split() == ["chain:5", "-", "-", "16", "10", "50", "1.0", "2.0", "3.0", *"----------"]


def test_two_revisions_are_compared_by_the_medians_of_ratios() -> None:
    def found(sagas: float, sec_us: float) -> list[dict[str, object]]:
        row = {
            "shape": "chain:5",
            "nodes": 1,
            "etcd": 1,
            "in_flight": 16,
            "p50_ms": 2,
            "p99_ms": 0,
            "etcd_txns": None,
            "etcd_bytes": 7,
        }
        return [{"commit_s": 1}, {**row, "sagas_per_s": sagas, "cpu_us": {"sec-1": sec_us, "sec-2": sec_us, "server": 5}}]

    rounds = [(found(20, 30), found(10, 10)), (found(30, 10), found(10, 10)), (found(70, 20), found(10, 10))]
    assert ratios(rounds) == {("chain:5", 1, 1, 16): {"sagas_per_s": 3, "p50_ms": 1, "sec_us": 2, "server_us": 1, "etcd_bytes": 1}}


def test_a_cluster_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    ended = invoke("--nodes=1", "--in-flight=1,4", "--shape=chain:2,fail:2", "--seconds=0.5", f"--json={file}")
    assert ended.exit_code == 0, ended.output
    limits, *rows = json.loads(file.read_text())
    assert all(value > 0 for value in limits.values())
    assert [(row["shape"], row["in_flight"]) for row in rows] == [("chain:2", 1), ("chain:2", 4), ("fail:2", 1), ("fail:2", 4)]
    for row in rows:
        assert set(row["cpu_us"]) == {"sec-1", "etcd-1", "server", "client"}
        assert row["sagas_per_s"] > 0
        assert row["etcd_txns"] > 0
        assert (row["of_floor"] is not None) == (row["in_flight"] == 1)
        assert row["of_floor"] is None or row["of_floor"] == pytest.approx(row["p50_ms"] / row["floor_ms"])
    assert "raw limits: etcd " in ended.output
    assert len(ended.output.splitlines()) == 2 + 1 + len(rows)


def test_two_clusters_share_the_sagas(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    ended = invoke("--nodes=1", "--clusters=2", "--in-flight=8", "--shape=chain:2", "--seconds=0.5", f"--json={file}")
    assert ended.exit_code == 0, ended.output
    _, row = json.loads(file.read_text())
    assert row["clusters"] == 2
    assert set(row["cpu_us"]) == {"client", *(f"{name}-c{number}" for name in ("sec-1", "etcd-1", "server") for number in (1, 2))}
    assert all(us > 0 for us in row["cpu_us"].values())
    assert row["actions_per_s"] > row["sagas_per_s"] > 0
    assert "2x1" in ended.output


@pytest.mark.parametrize("looked_at", [True, False])
def test_a_cluster_that_runs(etcd: EmbeddedEtcd, tmp_path: Path, looked_at: bool) -> None:
    file = tmp_path / "figures.json"
    with DevCluster(tmp_path / "cluster", nodes=2, etcd_endpoints=etcd.endpoints, prefix="/bench-tests") as cluster:
        look = [f"--pid=sec-{n + 1}={cluster.pid(name)}" for n, name in enumerate(cluster.names)] if looked_at else []
        look += [f"--etcd-endpoints={','.join(etcd.endpoints)}"] if looked_at else []
        ended = invoke("--sec", ",".join(cluster.addresses), "--in-flight=4", "--seconds=0.5", f"--json={file}", *look)
    assert ended.exit_code == 0, ended.output
    (row,) = json.loads(file.read_text())
    assert row["sagas_per_s"] > 0
    assert (row["etcd_txns"] is not None) == looked_at
    assert set(row["cpu_us"]) == {"server", "client", *(("sec-1", "sec-2") if looked_at else ())}
