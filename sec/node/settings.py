"""All settings of an SEC node, with their defaults and reasons, checked together when the node starts."""

import math
from dataclasses import dataclass, field

from sec.core.records import SecNodeName


class InvalidSettings(ValueError):
    """Settings that cannot work. `problems` has every one that was found, each a whole sentence."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__(" ".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of what one call may bring in, so that every transaction fits into etcd's limit of 1.5 MiB for a request."""

    payload_bytes: int = 256 * 1024
    definition_bytes: int = 1024 * 1024
    labels: int = 32
    label_value_chars: int = 256
    records_per_append: int = 1_000
    payload_bytes_per_append: int = 768 * 1024
    """A driver that has more to write at once writes it in several steps."""

    def problems(self) -> list[str]:
        found = []
        if not 1_024 <= self.payload_bytes <= 512 * 1024:
            found.append(
                f"The payload limit is {self.payload_bytes} bytes; it must be between 1024 and 524288, or etcd refuses the records."
            )
        if not 1_024 <= self.definition_bytes <= 1_048_576:
            found.append(
                f"The definition limit is {self.definition_bytes} bytes; it must be between 1024 and 1048576, or etcd refuses it."
            )
        return found


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most that a node holds at once, so that its memory is bounded whatever comes. Beyond them it refuses what is new (`sec.node.door`)."""

    active: int = 50_000
    """Active sagas that it owns. A takeover may go beyond it."""
    submits: int = 2_000
    """Submits, starts, commands and deletions in progress."""
    reads: int = 5_000
    """Reads, waits and watches in progress."""
    waiting_bytes: int = 64 * 1024 * 1024
    """Bytes of writes that wait for their turn at the store."""
    calls: int = 5_000
    """Calls of one action server in progress. What is beyond waits with its saga."""

    def problems(self) -> list[str]:
        return [
            f"The bound of {what} is {value}; it must be at least 1."
            for what, value in (
                ("active sagas", self.active),
                ("submits in progress", self.submits),
                ("reads in progress", self.reads),
                ("bytes that wait to be written", self.waiting_bytes),
                ("calls of an action server", self.calls),
            )
            if value < 1
        ]


@dataclass(frozen=True, slots=True)
class Settings:
    """What an SEC node needs to know. Times are in seconds."""

    name: SecNodeName
    listen: str = "127.0.0.1:7450"
    advertise: str = ""
    """Where clients and the other SEC nodes reach it; empty: what it listens on."""
    prefix: str = "/sec"
    lease_ttl_s: int = 5
    """How long a node that hangs keeps its sagas. etcd's own bound is 2 with its default timings."""
    store_timeout_s: float = 3.0
    """Bound of a single call to the store."""
    claim_fallback_s: float = 0.5
    """How long the next node in line waits for the one that should claim an orphan."""
    sweep_interval_s: float = 5.0
    """How often the leader looks for unowned sagas that the watches missed, and each node for events of its own sagas that were missed."""
    stall_limit_s: float = 10.0
    """A node says that it does not serve when what it has to do next has waited for longer than this."""
    keep_done_s: float = 7 * 86_400.0
    """How long a saga that ended done is kept; 0: for ever."""
    keep_undone_s: float = 30 * 86_400.0
    """How long one that ended undone is kept, which somebody may still want to ask about; 0: for ever."""
    registration_ttl_s: int = 15
    """How long an action server stays known that does not renew its registration."""
    revoke_on_refused: bool = True
    """Ends the session of a node whose stream to us broke and whose address refuses connections. Off where that says little about the node
    itself, since something else answers at the advertised addresses: then a crash is noticed when the lease ends."""
    stop_grace_s: float = 1.0
    """How long calls under way may take when the node stops. Watches last for ever: their clients go on at another node."""
    action_servers: tuple[str, ...] = ()
    """Addresses of action servers that do not register themselves."""
    limits: Limits = field(default_factory=Limits)
    bounds: Bounds = field(default_factory=Bounds)

    @property
    def advertised(self) -> str:
        return self.advertise or self.listen

    def check(self) -> None:
        """Raises `InvalidSettings` with everything that is wrong."""
        problems = self.limits.problems() + self.bounds.problems()
        if not self.name or "/" in self.name or len(self.name) > 128:
            problems.append(f'The node name "{self.name}" is not valid: 1 to 128 characters without "/".')
        if not self.prefix.startswith("/") or self.prefix.endswith("/"):
            problems.append(f'The prefix "{self.prefix}" must begin with "/" and not end with it.')
        if not 2 <= self.lease_ttl_s <= 600:
            problems.append(f"The lease TTL is {self.lease_ttl_s} s; it must be between 2 (etcd's least) and 600.")
        if self.store_timeout_s <= 0 or self.store_timeout_s > self.lease_ttl_s:
            problems.append(
                f"The store timeout is {self.store_timeout_s} s; it must be positive and at most the lease TTL ({self.lease_ttl_s} s), "
                "or one lost answer costs the session."
            )
        if self.claim_fallback_s <= 0:
            problems.append(f"The claim fallback is {self.claim_fallback_s} s; it must be positive.")
        if self.sweep_interval_s < 2 * self.claim_fallback_s:
            problems.append(
                f"The sweep interval is {self.sweep_interval_s} s; it must be at least twice the claim fallback ({self.claim_fallback_s} s), "
                "or the leader takes what others are about to claim."
            )
        if self.stall_limit_s < 2 * self.store_timeout_s:
            problems.append(
                f"The stall limit is {self.stall_limit_s} s; it must be at least twice the store timeout ({self.store_timeout_s} s), "
                "or one lost answer makes the node look unwell."
            )
        for what, keep_s in (("done", self.keep_done_s), ("undone", self.keep_undone_s)):
            if not 0 <= keep_s < math.inf:
                problems.append(f"Sagas that are {what} are to be kept for {keep_s} s; it must be 0 (for ever) or more.")
        if self.registration_ttl_s < 3:
            problems.append(f"The registration TTL is {self.registration_ttl_s} s; it must be at least 3.")
        if problems:
            raise InvalidSettings(tuple(problems))
