"""What an SEC node tells Prometheus, over HTTP on an address of its own. Gauges are read when they are asked for, in a turn of the node's event loop."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sec_model.versions import has_version

from sec.api.server import CannotListen
from sec.core.transitions import Course
from sec.dispatch.calls import Answer, Call
from sec.node.door import Bound
from sec.node.health import Condition
from sec.node.node import SecNode

_COURSES = (Course.RUNNING, Course.UNWINDING, Course.STUCK)
LONGEST_READ_S = 5.0
"""A node whose event loop has no turn for so long does not answer, which a scrape sees."""
_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class _Now(Collector):
    """What is true of a node at the moment."""

    def __init__(self, node: SecNode) -> None:
        self._node = node
        self._loop = asyncio.get_running_loop()

    def collect(self) -> Iterable[Metric]:
        """Called on a thread of the HTTP server."""
        read: Future[list[Metric]] = Future()

        def read_now() -> None:
            try:
                read.set_result(list(self._metrics()))
            except Exception as error:
                read.set_exception(error)

        self._loop.call_soon_threadsafe(read_now)
        return read.result(LONGEST_READ_S)

    def _metrics(self) -> Iterator[Metric]:
        node = self._node
        drivers = node.owner.drivers_now()
        owned = Counter(driver.state.course for driver in drivers)
        states = {str(course.value): owned[course] for course in _COURSES} | {"corrupt": len(node.owner.unreadable)}
        sagas = GaugeMetricFamily("sec_sagas_owned", "Sagas that this node owns.", labels=["state"])
        for state, count in states.items():
            sagas.add_metric([state], count)
        yield sagas
        pinned = GaugeMetricFamily("sec_sagas_pinned", "Sagas that this node owns and that call this version.", labels=["action"])
        for offer, count in Counter(offer for d in drivers for offer in d.state.pins.values() if has_version(offer)).items():
            pinned.add_metric([offer], count)
        yield pinned
        yield GaugeMetricFamily("sec_leader", "1 while this node leads.", value=node.leader.leading)
        condition = node.health.condition
        conditions = GaugeMetricFamily("sec_condition", "1 for how this node is, 0 for all else.", labels=["condition"])
        for each in Condition:
            conditions.add_metric([each.value], each is condition)
        yield conditions
        used = GaugeMetricFamily("sec_bound_used", "How much this node holds of what is bounded.", labels=["bound"])
        most = GaugeMetricFamily("sec_bound", "The bound.", labels=["bound"])
        for bound, (value, limit) in node.door.used().items():
            used.add_metric([bound.value], value)
            most.add_metric([bound.value], limit)
        yield used
        yield most
        refused = CounterMetricFamily("sec_refused", "Calls that were refused since there was no room.", labels=["bound"])
        for reason in Bound:
            refused.add_metric([reason.value], node.door.refused[reason])
        yield refused
        yield GaugeMetricFamily("sec_calls_in_progress", "Calls of action servers in progress.", value=node.directory.calls)
        yield GaugeMetricFamily("sec_serving", "1 while this node serves, as its health says.", value=node.serving)
        commits = node.commits
        yield GaugeMetricFamily("sec_store_writes_waiting", "Writes that wait for a transaction to share.", value=commits.depth)
        yield CounterMetricFamily("sec_store_writes", "Writes of sagas that were sent to the store.", value=commits.sent)
        yield CounterMetricFamily("sec_store_transactions", "Transactions that carried them.", value=commits.transactions)


class Metrics:
    """Serves the metrics of one node, from when it is made, in its event loop, until `close`. Raises `CannotListen`."""

    def __init__(self, node: SecNode, host: str, port: int) -> None:
        registry = CollectorRegistry()
        registry.register(_Now(node))
        self._calls = Histogram(
            "sec_call_seconds",
            "Calls of action servers, from their start to the answer or its loss.",
            ["action", "phase", "answer"],
            buckets=_BUCKETS,
            registry=registry,
        )
        node.owner.on_call = self._called
        self._server: WSGIServer
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise CannotListen(
                f'SEC node "{node.settings.name}" cannot serve metrics at {host}:{port}: {error}. Is another one running there?'
            ) from error

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._server.server_port

    def close(self) -> None:
        """Ends the HTTP server. Returns within half a second."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _called(self, call: Call, answer: Answer, took_s: float) -> None:
        self._calls.labels(call.action, call.phase.value, type(answer).__name__.lower()).observe(took_s)
