"""The simulator: SEC nodes, an etcd and action servers in one process and in virtual time; one seed is one run.

loop         an event loop without I/O, on which processes can be stopped and killed
network      what is between the nodes, etcd and the action servers, and what goes wrong there
definitions  random sagas
effects      an action server that keeps the contract
checkers     the invariants of a saga's log
plan         what happens in a run, as steps that a person can read
world        one run of a plan
shrink       the shortest plan that still fails
seeds        many seeds on all cores
"""
