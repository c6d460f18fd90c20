"""Opens a server's dashboard in a headless browser and compares it with /metrics.

    python tests/clients/dashboard.py http://127.0.0.1:8080 [--shots FOLDER] [--key KEY]

Needs playwright, and Chromium: one that is on the path, or playwright's own.
"""

import argparse
import contextlib
import shutil
import sys
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from prometheus_client.parser import text_string_to_metric_families

SIZES = {"desktop": (1280, 900), "phone": (390, 844), "small": (320, 640)}

# what the page shows -> the sample of /metrics that it must agree with
SAME = {
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
    "prompt_tokens": "vllm:prompt_tokens_total",
    "generation_tokens": "vllm:generation_tokens_total",
    "bytes_read": "mlx_flash_expert_bytes_read_total",
    "ssd_bytes_written": "mlx_flash_ssd_bytes_written_total",
    "restarts": "mlx_flash_worker_restarts_total",
    "memory_limit_bytes": "mlx_flash_memory_limit_bytes",
    "memory-kv": "mlx_flash_kv_cache_bytes",
    "memory-remembered": "mlx_flash_remembered_prompt_bytes",
    "peak_bytes": "mlx_flash_peak_model_memory_bytes",
    "disk_temperature_c": "mlx_flash_disk_temperature_celsius",
}


def check(
    chromium: Browser,
    base_url: str,
    shots: Path | None = None,
    key: str | None = None,
    sizes: Iterable[str] = SIZES,
) -> None:
    """Raise AssertionError where the page is not as it should be."""
    for size, scheme in product(sizes, ("light", "dark")):
        width, height = SIZES[size]
        context = chromium.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,  # type: ignore[arg-type]
            device_scale_factor=2,
        )
        with contextlib.closing(context):
            page = _open(context, base_url, key)
            _check_fits(page, width)
            _check_values(page, base_url, key)
            if shots:
                shots.mkdir(parents=True, exist_ok=True)
                page.screenshot(path=str(shots / f"{size}-{scheme}.png"), full_page=True)
            _check_map(page)


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Yield a headless Chromium."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        with contextlib.closing(chromium):
            yield chromium


def _open(context: BrowserContext, base_url: str, key: str | None) -> Page:
    """Open the page; whatever it says on the console, or asks of another host, is an error."""
    page = context.new_page()
    said: list[str] = []
    # that a key is missing is what the browser itself says of the 401
    page.on("console", lambda message: "401" in message.text or said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(base_url)
    if key is not None:
        page.locator("#key").fill(key)
        page.locator("#key").press("Enter")
    page.locator("[data-field=running][data-value]").wait_for()
    host = urlsplit(base_url).netloc
    assert not said, f"the console says: {said}"
    assert {urlsplit(url).netloc for url in asked} == {host}, asked
    return page


def _check_fits(page: Page, width: int) -> None:
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width, f"the page is {wide} wide where there are {width}"


def _check_values(page: Page, base_url: str, key: str | None) -> None:
    """Compare with /metrics read before and after: the page must lie between, or be either."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    for _ in range(20):
        before = samples(httpx.get(f"{base_url}/metrics", headers=headers).text)
        page.wait_for_timeout(1100)
        shown = page.evaluate(
            "Object.fromEntries([...document.querySelectorAll('[data-field]')]"
            ".map(e => [e.dataset.field, e.dataset.value]))"
        )
        after = samples(httpx.get(f"{base_url}/metrics", headers=headers).text)
        wrong = {
            field: (before[name], shown[field], after[name])
            for field, name in SAME.items()
            if name in after and not _between(before[name], float(shown[field] or 0), after[name])
        }
        if not wrong:
            return
    raise AssertionError(f"the page differs from /metrics: {wrong}")


def _between(one: float, shown: float, other: float) -> bool:
    return min(one, other) <= shown <= max(one, other)


def samples(text: str) -> dict[str, float]:
    """Return the samples of /metrics by name; of those with more labels, the last."""
    families = text_string_to_metric_families(text)
    return {sample.name: sample.value for family in families for sample in family.samples}


def _check_map(page: Page) -> None:
    """Read a value of the map with the mouse, and with the keyboard alone, where there is a map."""
    if not page.locator("#heat").is_visible():
        return
    page.locator("#heat").hover(position={"x": 20, "y": 100})
    pointed = page.locator("#reading").inner_text()
    assert pointed.startswith("Layer "), pointed
    page.mouse.move(0, 0)
    page.locator("#heat").focus()
    for arrow in ("ArrowDown", "ArrowDown", "ArrowLeft"):
        page.keyboard.press(arrow)
    reading = page.locator("#reading").inner_text()
    assert reading.startswith("Layer 1, "), reading


def main() -> None:
    """Check the server at the address that is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base_url")
    parser.add_argument("--shots", type=Path)
    parser.add_argument("--key")
    given = parser.parse_args()
    with browser() as chromium:
        check(chromium, given.base_url.rstrip("/"), given.shots, given.key)
    sys.stdout.write("the dashboard agrees with /metrics\n")


if __name__ == "__main__":
    main()
