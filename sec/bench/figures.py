"""The rows of a bench, and how they are printed."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sec.bench.limits import Limits

HEAD = (
    "                                                                        CPU us an action                  MiB   etcd, an action   of the limits\n"
    "shape      nodes etcd in flight  sagas/s actions/s   p50 ms   p99 ms p99.9 ms    SEC server   etcd client   SEC    txns   bytes  stream    etcd  floor"
)


@dataclass(frozen=True, slots=True)
class Figures:
    """One row. CPU in microseconds for each call of an action or undo action; what could not be seen is missing."""

    shape: str
    in_flight: int
    """For each cluster."""
    sagas_per_s: float
    actions_per_s: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    nodes: int = 0
    """Of each cluster."""
    etcd: int = 0
    """Members of each cluster's etcd."""
    clusters: int = 1
    cpu_us: dict[str, float] = field(default_factory=dict)
    """By process: "sec-1", "etcd-1", "server", "client"."""
    memory_mib: dict[str, float] = field(default_factory=dict)
    etcd_txns: float | None = None
    """For each action."""
    etcd_bytes: float | None = None
    """For each action."""
    of_stream: float | None = None
    """Actions/s as a part of what a stream carries."""
    of_etcd: float | None = None
    """The same of the records that etcd takes."""
    floor_ms: float | None = None
    """Of one saga alone: the commits and calls that must come one after the other, measured without an SEC node right before and after."""
    of_floor: float | None = None
    """How many times that it takes."""

    def cpu_of(self, kind: str) -> float | None:
        """Of all processes of a kind together."""
        found = [us for name, us in self.cpu_us.items() if name.split("-")[0] == kind]
        return sum(found) if found else None

    @property
    def _nodes(self) -> str:
        return "-" if not self.nodes else str(self.nodes) if self.clusters == 1 else f"{self.clusters}x{self.nodes}"

    def __str__(self) -> str:
        memory = max((mib for name, mib in self.memory_mib.items() if name.startswith("sec-")), default=None)
        return (
            f"{self.shape:10} {self._nodes:>5} {_cell(self.etcd or None, 4, 0)} {self.in_flight:>9} {self.sagas_per_s:>8.0f} "
            f"{self.actions_per_s:>9.0f} {self.p50_ms:>8.1f} {self.p99_ms:>8.1f} {self.p999_ms:>8.1f} "
            f"{_cell(self.cpu_of('sec'), 6, 0)} {_cell(self.cpu_of('server'), 6, 0)} {_cell(self.cpu_of('etcd'), 6, 0)} {_cell(self.cpu_of('client'), 6, 0)} "
            f"{_cell(memory, 5, 0)} {_cell(self.etcd_txns, 7, 3)} {_cell(self.etcd_bytes, 7, 0)} "
            f"{_percent(self.of_stream)} {_percent(self.of_etcd)} {_cell(self.of_floor, 6, 2)}"
        )


def quantile_ms(sorted_s: Sequence[float], share: float) -> float:
    """The nearest rank of a sorted list of seconds, in milliseconds; 0 of an empty one."""
    return 1000 * sorted_s[min(len(sorted_s) - 1, int(share * len(sorted_s)))] if sorted_s else 0.0


def told(limits: Limits) -> str:
    """The raw limits, as a line."""
    return (
        f"raw limits: etcd {limits.etcd_records_per_s:.0f} records/s, stream {limits.stream_items_per_s:.0f} items/s, "
        f"unary {limits.unary_calls_per_s:.0f} calls/s, event loop {limits.loop_turns_per_s:.0f} turns/s"
    )


def _percent(share: float | None) -> str:
    return f"{'-':>7}" if share is None else f"{share:>7.1%}"


def _cell(value: float | None, width: int, digits: int) -> str:
    return f"{value:>{width}.{digits}f}" if value is not None else f"{'-':>{width}}"
