"""The adapter of the store's port to a real etcd, over gRPC channels of our own.

config     where the endpoints are, credentials, timing
codec      the port's values to etcd's messages and back
wire       what those are made of that are laid by hand
errors     what every error of etcd and gRPC means: the only place that knows
channel    channels to several endpoints, failover, authentication
watch      many watches on one stream that moves between endpoints
client     `EtcdKv`, which puts them together
versions   what is known about versions of the server
"""

from sec.store.etcd.client import EtcdKv
from sec.store.etcd.config import EtcdConfig
from sec.store.etcd.versions import known_defect

__all__ = ["EtcdConfig", "EtcdKv", "known_defect"]
