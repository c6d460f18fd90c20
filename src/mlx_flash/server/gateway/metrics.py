"""GET /metrics: what the worker reports and what requests took, in the form Prometheus reads.

The names that begin with `vllm:` are vLLM's and mean what they mean there, so that boards made for
it show this server. Nothing is asked of the worker: its last report is read.
"""

from collections.abc import Callable, Iterable, Iterator

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from ..messages import Snapshot
from .backend import Backend
from .request_metrics import Distribution, RequestMetrics

Row = tuple[str, str, Callable[[Snapshot], float | None]]

router = APIRouter(tags=["health"])


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Return what a monitoring system wants to know, as Prometheus reads it."""
    text = generate_latest(request.app.state.registry)
    return Response(text, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


def watch(app: FastAPI, backend: Backend) -> None:
    """Measure the requests to a backend from now on, for `/metrics` of this app."""
    app.state.requests = requests = RequestMetrics()
    backend.watch = requests.observe
    app.state.registry = CollectorRegistry()
    app.state.registry.register(ServerCollector(backend, requests))


def _kv_share(snapshot: Snapshot) -> float:
    return snapshot.kv_bytes / snapshot.kv_limit_bytes if snapshot.kv_limit_bytes else 0.0


_VLLM_GAUGES: tuple[Row, ...] = (
    ("num_requests_running", "Answers that are computed now.", lambda s: s.running),
    ("num_requests_waiting", "Requests that are not begun.", lambda s: s.waiting),
    (
        "kv_cache_usage_perc",
        "Share of the KV cache that answers under way take, 0 to 1.",
        _kv_share,
    ),
)
_VLLM_COUNTERS: tuple[Row, ...] = (
    (
        "prefix_cache_queries",
        "Prompt tokens looked up among those remembered.",
        lambda s: s.prompt_tokens,
    ),
    ("prefix_cache_hits", "Prompt tokens that were remembered.", lambda s: s.cached_tokens),
    (
        "prompt_tokens",
        "Tokens of prompts, the remembered ones included.",
        lambda s: s.prompt_tokens,
    ),
    ("generation_tokens", "Tokens generated.", lambda s: s.generation_tokens),
)
_COUNTERS: tuple[Row, ...] = (
    ("expert_asks", "Distinct experts asked for, per call of a layer.", lambda s: s.asks),
    ("expert_hits", "Experts asked for that were in memory.", lambda s: s.hits),
    ("expert_misses", "Experts asked for that were read.", lambda s: s.asks - s.hits),
    ("expert_bytes_read", "Bytes of experts read from disk.", lambda s: s.bytes_read),
    ("expert_stall_seconds", "Time the model waited for experts.", lambda s: s.stall_s),
    ("disk_busy_seconds", "Time in which a read was under way.", lambda s: s.busy_s),
    ("prefetched", "Experts read before they were asked for.", lambda s: s.prefetched),
    ("prefetch_used", "Prefetched experts that were asked for.", lambda s: s.prefetch_hits),
    ("slot_resizes", "Times that memory moved the number of slots.", lambda s: s.resized),
    ("ssd_bytes_written", "Bytes the worker wrote to disk.", lambda s: s.ssd_bytes_written),
)
_GAUGES: tuple[Row, ...] = (
    ("memory_limit_bytes", "Memory that the model may take.", lambda s: s.memory_limit_bytes),
    ("model_memory_bytes", "Memory that MLX holds.", lambda s: s.model_bytes),
    ("peak_model_memory_bytes", "The most that MLX ever held.", lambda s: s.peak_model_bytes),
    ("worker_rss_bytes", "Resident memory of the worker process.", lambda s: s.rss_bytes),
    ("kv_cache_bytes", "KV cache of answers under way.", lambda s: s.kv_bytes),
    ("kv_cache_limit_bytes", "The most that KV caches may take.", lambda s: s.kv_limit_bytes),
    (
        "remembered_prompt_bytes",
        "KV cache of prompts kept for later.",
        lambda s: s.remembered_bytes,
    ),
    ("disk_temperature_celsius", "Temperature of the disk.", lambda s: s.disk_temperature_c),
)


class ServerCollector(Collector):
    """Reads the worker's last report and the request metrics whenever somebody asks.

    What only a worker knows is left out while there is none; the counters of another worker begin
    at zero, which Prometheus sees as a restart.
    """

    def __init__(self, backend: Backend, requests: RequestMetrics) -> None:
        self._backend = backend
        self._requests = requests

    def describe(self) -> Iterable[Metric]:
        """Return nothing: what there is, is known when it is collected."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield all families."""
        backend, snapshot = self._backend, self._backend.snapshot
        yield GaugeMetricFamily(
            "mlx_flash_worker_up", "Whether the model answers.", float(backend.state == "ready")
        )
        yield CounterMetricFamily(
            "mlx_flash_worker_restarts", "Workers that died and were replaced.", backend.restarts
        )
        failed = CounterMetricFamily(
            "mlx_flash_requests_failed",
            "Requests that failed, or that the model's process refused.",
            labels=["kind"],
        )
        for kind, number in self._requests.failed.items():
            failed.add_metric([kind], number)
        yield failed
        if backend.card is not None:
            yield from self._vllm(backend.card.name, snapshot)
        if snapshot is not None:
            yield from _rows(CounterMetricFamily, "mlx_flash_", _COUNTERS, snapshot)
            yield from _rows(GaugeMetricFamily, "mlx_flash_", _GAUGES, snapshot)
            yield from _layers(snapshot)

    def _vllm(self, model: str, snapshot: Snapshot | None) -> Iterator[Metric]:
        if snapshot is not None:
            yield from _rows(GaugeMetricFamily, "vllm:", _VLLM_GAUGES, snapshot, model)
            yield from _rows(CounterMetricFamily, "vllm:", _VLLM_COUNTERS, snapshot, model)
        else:
            waiting = GaugeMetricFamily(
                "vllm:num_requests_waiting", _VLLM_GAUGES[1][1], labels=["model_name"]
            )
            waiting.add_metric([model], self._requests.num_under_way)
            yield waiting
        ended = CounterMetricFamily(
            "vllm:request_success",
            "Answers that ended, by how.",
            labels=["model_name", "finished_reason"],
        )
        for reason, number in self._requests.ended.items():
            ended.add_metric([model, reason], number)
        yield ended
        requests = self._requests
        for name, documentation, distribution in (
            ("time_to_first_token_seconds", "From request to first token.", requests.first_token_s),
            ("inter_token_latency_seconds", "From a token to the next.", requests.next_token_s),
            ("e2e_request_latency_seconds", "From request to end.", requests.whole_s),
            ("request_queue_time_seconds", "Time a request waited.", requests.queue_s),
            ("request_prefill_time_seconds", "Time its prompt took.", requests.prefill_s),
            ("request_decode_time_seconds", "Time its answer took.", requests.decode_s),
            ("request_prompt_tokens", "Tokens of its prompt.", requests.prompt_tokens),
            ("request_generation_tokens", "Tokens of its answer.", requests.generation_tokens),
        ):
            yield _histogram(f"vllm:{name}", documentation, distribution, model)


def _rows(
    family: type[CounterMetricFamily | GaugeMetricFamily],
    prefix: str,
    rows: tuple[Row, ...],
    snapshot: Snapshot,
    model: str | None = None,
) -> Iterator[Metric]:
    """Yield a family with one value per row; none for a value that is not known."""
    for name, documentation, value_of in rows:
        value = value_of(snapshot)
        if value is None:
            continue
        metric = family(prefix + name, documentation, labels=["model_name"] if model else [])
        metric.add_metric([model] if model else [], value)
        yield metric


def _layers(snapshot: Snapshot) -> Iterator[Metric]:
    """Yield asks, hits and slots of each streamed layer."""
    asks = CounterMetricFamily("mlx_flash_layer_asks", "Experts asked for.", labels=["layer"])
    hits = CounterMetricFamily("mlx_flash_layer_hits", "Those in memory.", labels=["layer"])
    slots = GaugeMetricFamily("mlx_flash_slots", "Experts that fit in memory.", labels=["layer"])
    for number, layer in enumerate(snapshot.layers):
        asks.add_metric([str(number)], layer.asks)
        hits.add_metric([str(number)], layer.hits)
        slots.add_metric([str(number)], layer.capacity)
    yield from (asks, hits, slots)


def _histogram(
    name: str, documentation: str, distribution: Distribution, model: str
) -> HistogramMetricFamily:
    bounds = [*map(floatToGoString, distribution.bounds), "+Inf"]
    buckets = list(zip(bounds, map(float, distribution.cumulative), strict=True))
    metric = HistogramMetricFamily(name, documentation, labels=["model_name"])
    metric.add_metric([model], buckets, distribution.total)
    return metric
