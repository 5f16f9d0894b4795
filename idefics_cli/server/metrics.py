"""What the server tells Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from idefics_cli.engine.base import EngineStats
from idefics_cli.records import Answer

_PREFIX = "idefics_cli"
_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
_STAGES = ("prepare", "vision", "prefill", "decode")


class Metrics:
    """Counts what the server does; one for each server."""

    def __init__(self, stats: Callable[[], EngineStats], is_loaded: Callable[[], bool]) -> None:
        """Take what says what the engine is doing, and whether its weights are loaded."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, of when it was made
        self._registry = CollectorRegistry()
        words = "Requests answered, by HTTP status; 499 are clients that left."
        self.requests = self._counter("requests", words, "status")
        self.held = self._gauge("requests_held", "Requests that are held, from reading their bodies to their answers.")
        self.queued = self._gauge("requests_queued", "Of these, those that the engine has not taken.")
        self.local_jobs = self._gauge("local_connections", "Runs of ask and run that are connected.")
        self._pages = self._counter("pages_prepared", "Pages rendered and cut for requests.")
        self._page_hits = self._counter("pages_prepared_hits", "Pages of requests that were prepared already.")
        seconds = self._counter("stage_seconds", "Seconds spent, by stage.", "stage")
        self._seconds = {stage: seconds.labels(stage) for stage in _STAGES}
        tokens = self._counter("tokens", "Tokens read (prompt) and written (answer), over HTTP.", "kind")
        self._prompt_tokens, self._answer_tokens = tokens.labels("prompt"), tokens.labels("answer")
        self.latency = self._histogram("request_seconds", "From a request's first byte to its last.")
        self.first_token = self._histogram("first_token_seconds", "To the first token of streams.")
        self._registry.register(_EngineCollector(stats, is_loaded))

    def _counter(self, name: str, words: str, *labels: str) -> Counter:
        return Counter(name, words, labels, namespace=_PREFIX, registry=self._registry)

    def _gauge(self, name: str, words: str) -> Gauge:
        return Gauge(name, words, namespace=_PREFIX, registry=self._registry)

    def _histogram(self, name: str, words: str) -> Histogram:
        return Histogram(name, words, buckets=_SECONDS, namespace=_PREFIX, registry=self._registry)

    def prepared(self, pages: int, new: int, seconds: float) -> None:
        """Count the pages of a request, those of them that were not there, and what they cost."""
        self._pages.inc(new)
        self._page_hits.inc(pages - new)
        self._seconds["prepare"].inc(seconds)

    def answered(self, answer: Answer) -> None:
        """Count what an answer cost."""
        self._prompt_tokens.inc(answer.prompt_tokens)
        self._answer_tokens.inc(answer.new_tokens)
        for stage, spent in (
            ("vision", answer.vision_ms),
            ("prefill", answer.prefill_ms),
            ("decode", answer.decode_ms),
        ):
            self._seconds[stage].inc(spent / 1e3)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)


class _EngineCollector:
    """Asks the engine when Prometheus asks."""

    def __init__(self, stats: Callable[[], EngineStats], is_loaded: Callable[[], bool]) -> None:
        self._stats, self._is_loaded = stats, is_loaded

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        sequences = GaugeMetricFamily(f"{_PREFIX}_sequences", "Sequences in the engine, by state.", labels=["state"])
        sequences.add_metric(["running"], stats.running)
        sequences.add_metric(["waiting"], stats.waiting)
        yield sequences
        yield GaugeMetricFamily(f"{_PREFIX}_kv_cache_free_slots", "Token slots that nothing holds.", stats.free_slots)
        yield GaugeMetricFamily(f"{_PREFIX}_model_loaded", "Whether the weights are loaded.", float(self._is_loaded()))
        # They start anew when weights are loaded anew, as counters of a process that was started again do.
        yield CounterMetricFamily(f"{_PREFIX}_pages_encoded", "Pages through the vision model.", stats.pages_encoded)
        yield CounterMetricFamily(
            f"{_PREFIX}_pages_encoded_hits", "Pages of requests whose encoding was there.", stats.pages_reused
        )
