"""GET /metrics: every value against the worker's report, and what requests took."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import CARD, FakeBackend, client_of, finished, said

from mlx_flash.server.gateway.link import WorkerLink
from mlx_flash.server.gateway.request_metrics import Distribution, RequestMetrics
from mlx_flash.server.messages import (
    Accepted,
    Cancel,
    Failed,
    Generate,
    LayerHits,
    LoadFailed,
    Piece,
    Prefilled,
    Snapshot,
    Started,
    TextPrompt,
    ToolCall,
)
from mlx_flash.server.options import QueueOptions, WorkerOptions

SNAPSHOT = Snapshot(
    time_s=1_700_000_000.0,
    running=2,
    waiting=3,
    prompt_tokens=500,
    cached_tokens=200,
    generation_tokens=70,
    kv_bytes=4_000,
    remembered_bytes=1_000,
    kv_limit_bytes=16_000,
    model_bytes=90_000,
    peak_model_bytes=95_000,
    rss_bytes=120_000,
    memory_limit_bytes=100_000,
    capacity=12,
    asks=100,
    hits=80,
    bytes_read=5_000_000,
    stall_s=1.5,
    busy_s=2.5,
    prefetched=40,
    prefetch_hits=30,
    resized=1,
    ssd_bytes_written=0,
    direct_io=True,
    disk_temperature_c=44.0,
    layers=[LayerHits(60, 50, 12), LayerHits(40, 30, 10)],
    more_memory_gains=[(1_000, 0.9)],
)
OF_REPORT = {
    "vllm:num_requests_running": 2,
    "vllm:num_requests_waiting": 3,
    "vllm:kv_cache_usage_perc": 0.25,
    "vllm:prefix_cache_queries_total": 500,
    "vllm:prefix_cache_hits_total": 200,
    "vllm:prompt_tokens_total": 500,
    "vllm:generation_tokens_total": 70,
    "mlx_flash_expert_asks_total": 100,
    "mlx_flash_expert_hits_total": 80,
    "mlx_flash_expert_misses_total": 20,
    "mlx_flash_expert_bytes_read_total": 5_000_000,
    "mlx_flash_expert_stall_seconds_total": 1.5,
    "mlx_flash_disk_busy_seconds_total": 2.5,
    "mlx_flash_prefetched_total": 40,
    "mlx_flash_prefetch_used_total": 30,
    "mlx_flash_slot_resizes_total": 1,
    "mlx_flash_ssd_bytes_written_total": 0,
    "mlx_flash_memory_limit_bytes": 100_000,
    "mlx_flash_model_memory_bytes": 90_000,
    "mlx_flash_peak_model_memory_bytes": 95_000,
    "mlx_flash_worker_rss_bytes": 120_000,
    "mlx_flash_kv_cache_bytes": 4_000,
    "mlx_flash_kv_cache_limit_bytes": 16_000,
    "mlx_flash_remembered_prompt_bytes": 1_000,
    "mlx_flash_disk_temperature_celsius": 44,
}
OF_LAYERS = {
    ("mlx_flash_layer_asks_total", "0"): 60,
    ("mlx_flash_layer_asks_total", "1"): 40,
    ("mlx_flash_layer_hits_total", "0"): 50,
    ("mlx_flash_layer_hits_total", "1"): 30,
    ("mlx_flash_slots", "0"): 12,
    ("mlx_flash_slots", "1"): 10,
}
HISTOGRAMS = [
    "vllm:time_to_first_token_seconds",
    "vllm:inter_token_latency_seconds",
    "vllm:e2e_request_latency_seconds",
    "vllm:request_queue_time_seconds",
    "vllm:request_prefill_time_seconds",
    "vllm:request_decode_time_seconds",
    "vllm:request_prompt_tokens",
    "vllm:request_generation_tokens",
]
WANTED = Generate(request=7, prompt=TextPrompt(text="Hi"))


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def scraped(backend: FakeBackend, before: Callable[[Any], Any] | None = None) -> list[Any]:
    """Return the samples of /metrics, after what `before` does with the client."""

    async def scrape() -> str:
        async with client_of(backend) as client:
            if before is not None:
                await before(client)
            response = await client.get("/metrics")
            assert response.status_code == 200
            assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
            return str(response.text)

    families = text_string_to_metric_families(asyncio.run(scrape()))
    return [sample for family in families for sample in family.samples]


def values(samples: list[Any], *labels: str) -> dict[Any, float]:
    """Return the values of the samples with exactly these labels, by name and other labels."""
    return {
        (sample.name, *(sample.labels[label] for label in labels if label != "model_name")): (
            sample.value
        )
        for sample in samples
        if set(sample.labels) == set(labels)
    }


def test_every_value_is_that_of_the_workers_report() -> None:
    backend = FakeBackend()
    backend.snapshot = SNAPSHOT
    samples = scraped(backend)
    found = values(samples) | values(samples, "model_name")
    assert {name: found[(name,)] for name in OF_REPORT} == OF_REPORT
    assert values(samples, "layer") == OF_LAYERS
    assert found[("mlx_flash_worker_up",)] == 1
    assert found[("mlx_flash_worker_restarts_total",)] == 0


def test_names_of_vllm_carry_the_models_name() -> None:
    backend = FakeBackend()
    backend.snapshot = SNAPSHOT
    ours = [sample for sample in scraped(backend) if sample.name.startswith("vllm:")]
    assert {sample.labels["model_name"] for sample in ours} == {"tiny-moe"}
    names = {sample.name for sample in ours}
    assert {f"{name}_{end}" for name in HISTOGRAMS for end in ("bucket", "sum", "count")} <= names
    assert "vllm:request_success_total" in names


def test_nothing_is_said_of_a_worker_that_is_loading() -> None:
    backend = FakeBackend()
    backend.card, backend.state = None, "loading"
    assert values(scraped(backend)) == {
        ("mlx_flash_worker_up",): 0,
        ("mlx_flash_worker_restarts_total",): 0,
    }


def test_requests_wait_while_a_dead_worker_is_replaced() -> None:
    backend = FakeBackend()
    backend.state, backend.restarts = "loading", 2

    async def submit(client: Any) -> None:
        backend.submit(WANTED)

    samples = scraped(backend, submit)
    found = values(samples) | values(samples, "model_name")
    assert found[("mlx_flash_worker_up",)] == 0
    assert found[("mlx_flash_worker_restarts_total",)] == 2
    assert found[("vllm:num_requests_waiting",)] == 1
    assert ("vllm:num_requests_running",) not in found


def test_what_is_not_known_is_left_out() -> None:
    backend = FakeBackend()
    backend.snapshot = msgspec.structs.replace(
        SNAPSHOT, disk_temperature_c=None, ssd_bytes_written=None, kv_limit_bytes=0, layers=[]
    )
    samples = scraped(backend)
    names = {sample.name for sample in samples}
    assert "mlx_flash_disk_temperature_celsius" not in names
    assert "mlx_flash_ssd_bytes_written_total" not in names
    assert "mlx_flash_layer_asks_total" not in names
    assert values(samples, "model_name")[("vllm:kv_cache_usage_perc",)] == 0


def test_two_apps_do_not_share_numbers() -> None:
    busy, idle = FakeBackend(), FakeBackend()
    busy.snapshot, idle.snapshot = SNAPSHOT, msgspec.structs.replace(SNAPSHOT, asks=5, hits=5)
    assert values(scraped(busy))[("mlx_flash_expert_asks_total",)] == 100
    assert values(scraped(idle))[("mlx_flash_expert_asks_total",)] == 5


def test_a_models_name_cannot_break_the_format() -> None:
    backend = FakeBackend()
    name = 'a"b\\c\nd'
    backend.card = msgspec.structs.replace(CARD, name=name)
    backend.snapshot = SNAPSHOT
    labels = {sample.labels.get("model_name") for sample in scraped(backend)}
    assert labels == {None, name}


async def follow(backend: FakeBackend) -> None:
    """Read an answer of a stand-in to its end."""
    async with backend.submit(WANTED) as answer:
        await answer.accepted(1.0)
        async for _ in answer.events(1.0):
            pass


def test_an_answer_is_observed_once_it_has_ended() -> None:
    backend = FakeBackend(said("Hel", "lo", "!"))
    samples = scraped(backend, lambda client: follow(backend))
    found = values(samples, "model_name")
    assert {name: found[(f"{name}_count",)] for name in HISTOGRAMS} == {
        **dict.fromkeys(HISTOGRAMS, 1),
        "vllm:inter_token_latency_seconds": 2,
    }
    assert found[("vllm:request_prompt_tokens_sum",)] == 7
    assert found[("vllm:request_generation_tokens_sum",)] == 3
    assert found[("vllm:request_queue_time_seconds_sum",)] == pytest.approx(0.001)
    assert found[("vllm:request_prefill_time_seconds_sum",)] == pytest.approx(0.02)
    assert found[("vllm:request_decode_time_seconds_sum",)] == pytest.approx(0.03)
    assert values(samples, "model_name", "finished_reason") == {
        ("vllm:request_success_total", "stop"): 1,
        ("vllm:request_success_total", "length"): 0,
        ("vllm:request_success_total", "abort"): 0,
        ("vllm:request_success_total", "error"): 0,
    }


def test_buckets_are_cumulative_and_end_with_all() -> None:
    backend = FakeBackend(said("Hel", "lo"))
    samples = scraped(backend, lambda client: follow(backend))
    of_prompt = {
        float(sample.labels["le"]): sample.value
        for sample in samples
        if sample.name == "vllm:request_prompt_tokens_bucket"
    }
    assert [of_prompt[bound] for bound in (1, 2, 5, 10, 20, float("inf"))] == [0, 0, 0, 1, 1, 1]


def test_a_value_counts_at_its_bound() -> None:
    distribution = Distribution([1.0, 2.0])
    distribution.add(1.0)
    distribution.add(1.5, times=3)
    distribution.add(9.0)
    assert distribution.cumulative == [1, 4, 5]
    assert distribution.total == 14.5


def test_times_are_told_from_when_a_request_was_submitted() -> None:
    clock = Clock()
    metrics = RequestMetrics(clock)
    for at, event in [
        (0.0, WANTED),
        (1.0, Accepted(7, 9)),
        (2.0, Started(7, 0)),
        (3.0, Prefilled(7, 5, 9)),
        (3.5, Piece(7, "prompt", "Hi", 0)),
        (4.0, Piece(7, "text", "Hel")),
        (4.6, Piece(7, "text", "lo", 3)),
        (9.0, ToolCall(7, "f", "{}")),
        (9.5, Piece(7, "text", "!")),
        (10.0, finished()),
    ]:
        clock.now = 100.0 + at
        metrics.observe(WANTED, event)
    assert metrics.first_token_s.total == pytest.approx(4.0)
    assert metrics.next_token_s.cumulative[-1] == 4
    assert metrics.next_token_s.total == pytest.approx(0.6 + 0.5)
    assert metrics.whole_s.total == pytest.approx(10.0)
    assert metrics.num_under_way == 0


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (finished(reason="stop"), "stop"),
        (finished(reason="tools"), "stop"),
        (finished(reason="length"), "length"),
        (finished(reason="context"), "length"),
        (Cancel(7), "abort"),
        (Failed(7, "unavailable", "the worker died."), "error"),
    ],
)
def test_a_request_that_ended_is_counted_and_forgotten(event: Any, reason: str) -> None:
    metrics = RequestMetrics()
    metrics.observe(WANTED, WANTED)
    assert metrics.num_under_way == 1
    metrics.observe(WANTED, event)
    assert metrics.num_under_way == 0
    assert {end for end, number in metrics.ended.items() if number} == {reason}


def test_failures_are_counted_by_kind() -> None:
    failed = Failed(0, "context_length", "too long.")
    backend = FakeBackend([failed])

    async def ask(client: Any) -> None:
        with pytest.raises(Exception, match="too long"):
            await follow(backend)

    kinds = values(scraped(backend, ask), "kind")
    assert kinds[("mlx_flash_requests_failed_total", "context_length")] == 1
    assert kinds[("mlx_flash_requests_failed_total", "overloaded")] == 0


def test_a_client_that_hangs_up_is_an_abort() -> None:
    backend = FakeBackend([Piece(0, "text", "Hel")])

    async def hang_up(client: Any) -> None:
        async with backend.submit(WANTED) as answer:
            async for event in answer.events(1.0):
                if isinstance(event, Piece):
                    break

    ended = values(scraped(backend, hang_up), "model_name", "finished_reason")
    assert ended[("vllm:request_success_total", "abort")] == 1


def test_the_link_tells_of_submitted_cancelled_and_refused_requests() -> None:
    async def tell() -> list[tuple[Generate, Any]]:
        link = WorkerLink(WorkerOptions(), QueueOptions())
        told: list[tuple[Generate, Any]] = []
        link.watch = lambda wanted, event: told.append((wanted, event))
        link._most_answers = 1
        async with link.submit(WANTED):
            with pytest.raises(Exception, match="line is full"):
                link.submit(WANTED)
        link.failure = LoadFailed("no such model", True)
        with pytest.raises(Exception, match="not loaded"):
            link.submit(WANTED)
        return told

    (first, submitted), (_, refused), (last, cancelled), (_, failed) = asyncio.run(tell())
    assert submitted is first
    assert refused.kind == "overloaded"
    assert (last, cancelled) == (first, Cancel(first.request))
    assert failed.kind == "unavailable"


def test_observing_a_token_is_cheap() -> None:
    metrics, piece = RequestMetrics(), Piece(7, "text", "a")
    metrics.observe(WANTED, WANTED)
    fastest = min(_seconds_of_100(metrics, piece) for _ in range(20))
    assert fastest / 100 < 20e-6


def _seconds_of_100(metrics: RequestMetrics, piece: Piece) -> float:
    start = time.perf_counter()
    for _ in range(100):
        metrics.observe(WANTED, piece)
    return time.perf_counter() - start
