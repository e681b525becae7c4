"""What processes and etcd have used so far: CPU time, memory, transactions and bytes. For the measurements in this folder; Linux only."""

import os
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def cpu_s(pid: int) -> float:
    """CPU time of a process that runs, with all of its threads, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def memory_mib(pid: int) -> float:
    """Resident memory of a process that runs."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES / 2**20


def cpu_of(pids: Mapping[str, int]) -> dict[str, float]:
    """CPU time so far of each process that still runs, by name."""
    found = {}
    for name, pid in pids.items():
        try:
            found[name] = cpu_s(pid)
        except FileNotFoundError:
            continue
    return found


@dataclass(frozen=True, slots=True)
class EtcdCounts:
    """What one member of etcd has done so far: transactions, and bytes that its clients have sent."""

    transactions: float
    bytes_in: float

    @classmethod
    def read(cls, endpoint: str) -> "EtcdCounts":
        """Asks the member at this client URL. Blocks for a moment."""
        with urllib.request.urlopen(f"{endpoint}/metrics", timeout=10) as answer:  # a URL of ours
            lines = answer.read().decode().splitlines()

        def total(*parts: str) -> float:
            return sum(float(line.rpartition(" ")[2]) for line in lines if all(part in line for part in parts) and line[0] != "#")

        handled = total("grpc_server_handled_total{", 'grpc_method="Txn"', 'grpc_code="OK"')
        return cls(handled, total("etcd_network_client_grpc_received_bytes_total"))
