"""Chaos runs: a cluster on one machine is given sagas and faults by a seed, and what came of it is checked against the invariants."""
