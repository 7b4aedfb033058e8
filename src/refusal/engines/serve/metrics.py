"""Numbers for Prometheus, in a registry of their own."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

if TYPE_CHECKING:
    from refusal.engines.serve.worker import Worker

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Metrics:
    """What a server has done so far. Labels are of a few values each: conditions without their
    numbers, paths that there are.
    """

    def __init__(self, worker: "Worker") -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "refusal_requests",
            "Answers, by path and status.",
            ("path", "status"),
            registry=self.registry,
        )
        self.completions = Counter(
            "refusal_completions",
            "Completions, by condition and how they ended.",
            ("condition", "end"),
            registry=self.registry,
        )
        self.first = Histogram(
            "refusal_first_token_seconds",
            "Seconds until the first token.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.whole = Histogram(
            "refusal_completion_seconds",
            "Seconds until the last token.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.registry.register(_Figures(worker))

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self.registry)


class _Figures:
    """What the worker counts, asked when it is wanted."""

    def __init__(self, worker: "Worker") -> None:
        self.worker = worker

    def collect(self) -> Iterator[Metric]:
        """The numbers as they are now."""
        now = self.worker.figures
        yield GaugeMetricFamily("refusal_running", "Rows being written.", now.running)
        yield GaugeMetricFamily("refusal_waiting", "Requests waiting for room.", now.waiting)
        yield CounterMetricFamily("refusal_steps", "Steps of the model.", now.steps)
        yield CounterMetricFamily("refusal_rows", "Rows of all steps together.", now.rows)
        yield CounterMetricFamily("refusal_prompt_tokens", "Tokens read.", now.prompt_tokens)
        written = CounterMetricFamily(
            "refusal_written_tokens", "Tokens written, by condition.", labels=("condition",)
        )
        for condition, tokens in dict(now.written).items():
            written.add_metric((condition,), tokens)
        yield written


def plain(condition: str) -> str:
    """A condition without the numbers behind its name."""
    return condition.partition("@")[0]
