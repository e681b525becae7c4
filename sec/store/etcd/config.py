"""Where etcd is and how to talk to it. No I/O but reading the TLS files."""

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address of etcd: `target` as "host:port", `tls` when the connection is encrypted."""

    target: str
    tls: bool


@dataclass(frozen=True, slots=True)
class EtcdConfig:
    """Settings of an `EtcdKv`. Raises `ValueError` at once when they contradict each other.

    Endpoints are "host:port", "http://host:port" or "https://host:port". The first one that answers is used until it fails.
    With any of the TLS settings every endpoint is spoken to over TLS; "https" alone trusts the certificates gRPC comes with.
    """

    endpoints: tuple[str, ...]
    ca_path: Path | None = None
    """PEM file with the certificates that may have signed the server's."""
    cert_path: Path | None = None
    """PEM file with our certificate (and its chain), where etcd asks clients for one."""
    key_path: Path | None = None
    """PEM file with the key of `cert_path`."""
    server_name: str | None = None
    """The name to look for in the server's certificate, when it is not the endpoint's host."""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    timeout_s: float = 5.0
    """For a call that is given no timeout of its own. All attempts share it."""
    connect_timeout_s: float = 2.0
    """How long a connection may take before the next endpoint is tried."""
    keepalive_s: float = 6.0
    """A silent connection with calls on it is probed after so long. etcd's servers refuse less than 5 s by default."""
    keepalive_timeout_s: float = 3.0
    """A probe that is not answered for so long ends the connection."""

    def __post_init__(self) -> None:
        if not self.endpoints:
            raise ValueError("At least one etcd endpoint is needed.")
        if (self.cert_path is None) != (self.key_path is None):
            raise ValueError("A client certificate for etcd needs its key, and the key its certificate: set both or none.")
        if (self.username is None) != (self.password is None):
            raise ValueError("A user name for etcd needs a password, and the password a user name: set both or none.")
        for name in ("timeout_s", "connect_timeout_s", "keepalive_s", "keepalive_timeout_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"The etcd setting {name} must be above 0, not {getattr(self, name)}.")
        self.addresses()

    def addresses(self) -> tuple[Endpoint, ...]:
        """The endpoints, parsed, each once, in order."""
        with_tls = any((self.ca_path, self.cert_path, self.server_name))
        return tuple(dict.fromkeys(_parse(endpoint, with_tls) for endpoint in self.endpoints))


def _parse(endpoint: str, with_tls: bool) -> Endpoint:
    parts = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
    if parts.scheme not in ("", "http", "https"):
        raise ValueError(f'The etcd endpoint "{endpoint}" starts with neither http:// nor https://.')
    if parts.scheme == "http" and with_tls:
        raise ValueError(f'The etcd endpoint "{endpoint}" says http, but TLS settings are given: write https, or leave it out.')
    try:
        port = parts.port
    except ValueError:
        port = None
    if not parts.hostname or port is None or parts.path not in ("", "/") or parts.query or parts.username:
        raise ValueError(f'The etcd endpoint "{endpoint}" is not of the form host:port, http://host:port or https://host:port.')
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return Endpoint(f"{host}:{port}", tls=parts.scheme == "https" or with_tls)
