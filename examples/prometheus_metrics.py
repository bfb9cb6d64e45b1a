"""A server's statistics for Prometheus: an echo server, and its metrics over HTTP on a second port.

It shows how to call ``server.stats()`` at each request of Prometheus. Needs ``pip install prometheus_client``:

    python3 -m examples.prometheus_metrics        # or with two ports: the service's, the metrics'
    python3 -m echo.client -m hello
    curl -s http://127.0.0.1:9100/metrics | grep ^echo_
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Iterable

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

import echo

REGISTRY = CollectorRegistry()


class ServerCollector(Collector):
    """Returns the server's own counts: a collector need not count anything."""

    def __init__(self, server: echo.Server) -> None:
        self.server = server

    def collect(self) -> Iterable[Metric]:
        stats = self.server.stats()
        yield GaugeMetricFamily("echo_sessions", "Sessions that live now", stats.active)
        ended = CounterMetricFamily("echo_sessions_ended", "Sessions that are over", labels=["reason"])
        for reason, count in stats.ended.items():
            ended.add_metric([reason], count)
        yield ended
        refused = CounterMetricFamily("echo_refused", "Connections that got no session", labels=["reason"])
        for reason, count in stats.refused.items():
            refused.add_metric([reason], count)
        yield refused
        yield CounterMetricFamily("echo_accepted", "Connections accepted", stats.accepted)
        yield CounterMetricFamily("echo_accept_errors", "Failed attempts to accept", stats.accept_errors)
        for name in ("messages_in", "messages_out", "bytes_in", "bytes_out"):
            yield CounterMetricFamily(f"echo_{name}", name.replace("_", " "), getattr(stats, name))


class MeasuredServer(echo.Server):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        REGISTRY.register(ServerCollector(self))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # does nothing if the program has configured its log
    port, metrics_port = map(int, sys.argv[1:3]) if len(sys.argv) > 2 else (65432, 9100)
    metrics, _ = start_http_server(metrics_port, "127.0.0.1", REGISTRY)  # a daemon thread: it ends with the program
    logging.info("metrics on http://127.0.0.1:%d/metrics", metrics.server_port)
    sys.exit(echo.run(echo.EchoRequestHandler, ("127.0.0.1", port), server_class=MeasuredServer))
