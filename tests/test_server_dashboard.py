"""The dashboard: its page and files, the state it is sent, and the hints."""

import asyncio
import json
import re
from contextlib import aclosing
from importlib import resources
from typing import Any

import msgspec
import pytest
from serving import CARD, FakeBackend, client_of
from test_server_metrics import SNAPSHOT, WANTED

from mlx_flash.server.gateway.dashboard import STATIC, updates
from mlx_flash.server.gateway.dashboard_state import points_of, state_of
from mlx_flash.server.gateway.hints import hints_of
from mlx_flash.server.gateway.reports import Reports
from mlx_flash.server.gateway.request_metrics import RequestMetrics
from mlx_flash.server.messages import Failed, LayerHits, Snapshot

replace = msgspec.structs.replace
BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
RESIDENT = replace(CARD, layers=0, capacity=0)
KEY = "a-key-of-some-length"


def asked(path: str, method: str = "GET", headers: Any = None, **access: Any) -> Any:
    """Return the response of an app in front of a stand-in."""
    return asyncio.run(_asked(FakeBackend(), path, method, headers, **access))


async def _asked(
    backend: FakeBackend, path: str, method: str = "GET", headers: Any = None, **access: Any
) -> Any:
    async with client_of(backend, **access) as client:
        return await client.request(method, path, headers=headers)


def after(seconds: float, before: Snapshot = SNAPSHOT, **changes: Any) -> Snapshot:
    """Return a report that comes later."""
    return replace(before, time_s=before.time_s + seconds, **changes)


def texts(*args: Any, **changes: Any) -> list[str]:
    """Return the texts of hints."""
    return [hint.text for hint in hints_of(*args, **changes)]


# --- the page


def test_a_browser_is_given_the_page_and_nothing_from_elsewhere() -> None:
    response = asked("/", headers=BROWSER)
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "<h1" in response.text
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy
    assert response.headers["x-frame-options"] == "DENY"
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_clients_of_ollama_are_told_that_it_is_running(method: str) -> None:
    response = asked("/", method)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    assert response.text in ("Ollama is running", "")


@pytest.mark.parametrize("name", STATIC)
def test_files_of_the_page_are_served_as_what_they_are(name: str) -> None:
    response = asked(f"/dashboard/{name}")
    assert response.status_code == 200
    assert response.headers["content-type"] == STATIC[name]
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "name", ["index.html", "nothing.js", "..%2F..%2Fmodel", "../curve.json", "%2e%2e/curve.json"]
)
def test_no_other_name_reaches_a_file(name: str) -> None:
    response = asked(f"/dashboard/{name}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == 404


def test_the_page_needs_nothing_from_the_network() -> None:
    folder = resources.files("mlx_flash.assets") / "dashboard"
    for name in ("index.html", *STATIC):
        text = (folder / name).read_text()
        text = text.replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"https?:|//\w+\.\w|data:", text.replace("data: ", "")), name


def test_the_page_loads_only_what_is_served() -> None:
    folder = resources.files("mlx_flash.assets") / "dashboard"
    named = {
        found
        for name in ("index.html", *STATIC)
        for found in re.findall(r'(?:/dashboard/|from "\./)([\w.]+)', (folder / name).read_text())
    }
    assert named == {*STATIC, "events"}


def test_with_keys_the_page_is_open_and_what_it_shows_is_not() -> None:
    for path in ("/", *(f"/dashboard/{name}" for name in STATIC)):
        assert asked(path, headers=BROWSER, api_keys=(KEY,)).status_code == 200, path
    for path in ("/dashboard/events", "/dashboard/other", "/metrics"):
        response = asked(path, headers=BROWSER, api_keys=(KEY,))
        assert response.status_code == 401, path


def test_the_page_is_no_part_of_the_api() -> None:
    paths = asked("/openapi.json").json()["paths"]
    assert not [path for path in paths if path == "/" or path.startswith("/dashboard")]
    assert "/metrics" in paths


# --- events


def test_events_end_when_the_server_stops() -> None:
    backend = FakeBackend()
    backend.state = "stopping"
    response = asyncio.run(_asked(backend, "/dashboard/events", api_keys=(), headers=BROWSER))
    assert response.headers["content-type"].startswith("text/event-stream")
    (event,) = response.text.strip().split("\n\n")
    assert json.loads(event.removeprefix("data: "))["state"] == "stopping"


def test_events_send_each_point_once() -> None:
    async def collect() -> list[dict[str, Any]]:
        backend, states = FakeBackend(), []
        report = SNAPSHOT
        backend.report(report)
        backend.report(report := after(1, report))
        stream = updates(backend, RequestMetrics(), started_s=0.0, period_s=0.0)
        async with aclosing(stream) as events:  # type: ignore[type-var]
            async for event in events:
                assert event.startswith(b"data: ")
                assert event.endswith(b"\n\n")
                states.append(json.loads(event[6:]))
                if len(states) == 3:
                    return states
                if len(states) == 2:
                    backend.report(report := after(1, report))
        raise AssertionError("the events ended")

    first, second, third = asyncio.run(collect())
    start = SNAPSHOT.time_s
    assert [point["time_s"] for point in first["points"]] == [start + 1]
    assert second["points"] == []
    assert [point["time_s"] for point in third["points"]] == [start + 2]


def test_the_state_is_that_of_the_workers_report() -> None:
    backend, requests = FakeBackend(), RequestMetrics()
    backend.restarts = 1
    backend.report(SNAPSHOT)
    requests.observe(WANTED, Failed(0, "invalid", "no."))
    state = json.loads(msgspec.json.encode(state_of(backend, requests, uptime_s=5.0)))
    assert (state["state"], state["restarts"], state["uptime_s"]) == ("ready", 1, 5.0)
    assert (state["answered"], state["failed"]) == (0, 1)
    assert state["model"]["name"] == "tiny-moe"
    now = state["now"]
    for name in (
        *("running", "waiting", "prompt_tokens", "cached_tokens", "generation_tokens", "asks"),
        *("hits", "bytes_read", "ssd_bytes_written", "disk_temperature_c", "direct_io"),
        *("prefetched", "prefetch_hits", "resized"),
    ):
        assert now[name] == getattr(SNAPSHOT, name), name
    assert now["slots"] == [12, 10]
    assert now["layer_hit_rates"] == [0.833, 0.75]
    assert now["hit_rate"] == 0.8  # nothing was asked lately: since the model was loaded


def test_memory_adds_up_to_the_promise() -> None:
    backend = FakeBackend()
    backend.report(replace(SNAPSHOT, memory_limit_bytes=60_000_000, model_bytes=25_000_000))
    now = state_of(backend, RequestMetrics(), 0.0).now
    assert now is not None
    memory = now.memory
    # the slots shrank with their number: see `resized`
    assert (memory.resident_bytes, memory.slot_bytes) == (12_000_000, 10_000_000)
    assert (memory.kv_bytes, memory.remembered_bytes) == (4_000, 1_000)
    assert memory.other_bytes == 25_000_000 - 22_005_000
    assert memory.free_bytes == 60_000_000 - 25_000_000
    backend.report(after(1, capacity=6))
    now = state_of(backend, RequestMetrics(), 0.0).now
    assert now is not None
    assert now.memory.slot_bytes == 5_000_000
    assert now.memory.free_bytes == 0


@pytest.mark.parametrize("state", ["loading", "failed"])
def test_without_a_worker_there_is_a_state_and_nothing_else(state: Any) -> None:
    backend = FakeBackend()
    backend.card, backend.state = None, state
    shown = state_of(backend, RequestMetrics(), 0.0)
    assert (shown.state, shown.model, shown.now) == (state, None, None)
    assert (shown.hints, shown.points) == ([], [])


def test_speeds_are_differences_over_the_last_seconds() -> None:
    reports = [
        after(
            second,
            generation_tokens=70 + 10 * second,
            prefilled_tokens=300 * second,
            bytes_read=5_000_000 + 2_000_000 * second,
            stall_s=1.5 + 0.25 * second,
            asks=100 + 8 * second,
            hits=80 + 6 * second,
            layers=[LayerHits(60 + 8 * second, 50 + 6 * second, 12), LayerHits(40, 30, 10)],
        )
        for second in range(8)
    ]
    points = points_of(reports)
    assert len(points) == 7
    for point in points:
        assert point.generation_tps == 10
        assert point.prompt_tps == 300
        assert point.read_bps == 2_000_000
        assert point.stall_share == 0.25
        assert point.hit_rate == 0.75
        assert point.layer_hit_rates == [0.75, None]


def test_the_hit_rate_is_that_of_the_last_half_minute() -> None:
    backend = FakeBackend()
    backend.report(SNAPSHOT)
    for second in range(1, 60):
        late = second > 20
        hits = 80 + second * 2 if not late else 120 + (second - 20) * 9
        backend.report(after(second, asks=100 + 10 * second, hits=hits))
    now = state_of(backend, RequestMetrics(), 0.0).now
    assert now is not None
    assert now.hit_rate == 0.9


def test_a_clock_that_was_set_back_does_no_harm() -> None:
    backend = FakeBackend()
    for second in (0, 1, -50, -49):
        backend.report(after(second))
    assert [point.time_s - SNAPSHOT.time_s for point in points_of(list(backend.reports))] == [
        1,
        -49,
    ]


def test_reports_are_kept_once_a_second_for_two_minutes() -> None:
    reports = Reports()
    for half in range(1000):
        reports.add(after(half / 2))
    kept = [report.time_s - SNAPSHOT.time_s for report in reports]
    assert kept == list(range(379, 500))
    reports.clear()
    assert len(reports) == 0


# --- hints


def test_no_hint_without_a_report() -> None:
    assert hints_of(CARD, [], None) == []


@pytest.mark.parametrize(
    ("hit_rate", "text"),
    [
        (0.78, "2.10 GB more memory (--memory) would raise the hit rate from 78% to about 90%."),
        (0.88, "4.30 GB more memory (--memory) would raise the hit rate from 88% to about 96%."),
        (0.95, "8.90 GB more memory (--memory) would raise the hit rate from 95% to about 100%."),
        (0.97, None),
        (None, None),
    ],
)
def test_more_memory_is_suggested_when_it_gains_five_points(
    hit_rate: float | None, text: str | None
) -> None:
    gains = [(4_300_000_000, 0.96), (2_100_000_000, 0.9), (8_900_000_000, 1.0)]
    quiet = replace(SNAPSHOT, waiting=0, resized=0, more_memory_gains=gains)
    assert texts(CARD, [quiet], hit_rate) == ([text] if text else [])


def test_a_hot_disk_is_told_of() -> None:
    hot = replace(SNAPSHOT, waiting=0, resized=0, disk_temperature_c=68.2)
    (hint,) = hints_of(CARD, [hot], None)
    assert hint.text == "The disk is hot (68 °C): reading may pause."
    assert hint.kind == "warning"
    assert texts(CARD, [replace(hot, disk_temperature_c=64.9)], None) == []
    assert texts(CARD, [replace(hot, disk_temperature_c=None)], None) == []


def test_a_full_kv_cache_is_told_of_when_requests_keep_waiting() -> None:
    full = replace(SNAPSHOT, resized=0, running=4, waiting=2, kv_bytes=13_000)
    (text,) = texts(CARD, [full, full], None)
    assert text == (
        "Requests wait because the KV cache is full: a larger --max-context gives it more room, "
        "and the experts less."
    )
    assert texts(CARD, [replace(full, waiting=0), full], None) == []
    assert texts(CARD, [replace(full, kv_bytes=9_000)], None) == []


def test_a_full_batch_is_told_of() -> None:
    full = replace(SNAPSHOT, resized=0, running=16, waiting=2, kv_bytes=16_000)
    (text,) = texts(CARD, [full], None)
    assert text.startswith("Requests wait because 16 are answered at once: a larger --max-batch")
    one = replace(full, running=1)
    on_gpu = replace(CARD, max_batch=1, backend="cuda", kernels="reference")
    (text,) = texts(on_gpu, [one], None)
    assert "--fast-batch computes several together, which is not exact" in text


@pytest.mark.parametrize(
    ("resized", "capacity", "text"),
    [
        (
            3,
            9,
            "Slots were given back because other programs needed memory: "
            "9 of 12 per layer are left (changed 3 times).",
        ),
        (
            2,
            12,
            "Slots were given back because other programs needed memory, and are all there again "
            "(changed 2 times).",
        ),
        (0, 12, None),
    ],
)
def test_slots_that_were_given_back_are_told_of(
    resized: int, capacity: int, text: str | None
) -> None:
    report = replace(SNAPSHOT, waiting=0, resized=resized, capacity=capacity)
    assert texts(CARD, [report], None) == ([text] if text else [])


def test_a_model_that_fits_is_good_news() -> None:
    report = replace(SNAPSHOT, waiting=0, resized=0, layers=[], more_memory_gains=[])
    (hint,) = hints_of(RESIDENT, [report], None)
    assert (hint.kind, hint.text) == ("good", "The whole model fits: nothing is streamed.")
