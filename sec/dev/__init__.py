"""For development and tests: a real etcd, and whole clusters, on one machine. Nothing here runs in production."""
