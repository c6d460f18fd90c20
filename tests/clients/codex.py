"""Asks a server by way of the Codex CLI without its terminal: `codex.py BASE_URL CODEX`.

It runs with a home of its own and without a key, and sees no server but this one.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

CONFIG = """
model = "local"
model_provider = "here"

[model_providers.here]
name = "here"
base_url = "{base_url}/v1"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 0
"""


def ask(base_url: str, codex: str, prompt: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Return how Codex answered; the answer is its stdout. `folder` is its home and its work."""
    home, work = folder / "home", folder / "work"
    (home / ".codex").mkdir(parents=True, exist_ok=True)
    work.mkdir(exist_ok=True)
    (home / ".codex" / "config.toml").write_text(CONFIG.format(base_url=base_url))
    return subprocess.run(
        [codex, "exec", "--skip-git-repo-check", prompt],
        env={"HOME": str(home), "PATH": os.environ["PATH"]},
        cwd=work,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


def main() -> int:
    """Say hello; print the answer."""
    base_url, codex = sys.argv[1:3]
    with tempfile.TemporaryDirectory() as folder:
        done = ask(base_url.rstrip("/").removesuffix("/v1"), codex, "hello", Path(folder))
    sys.stdout.write(done.stdout)
    if done.returncode or not done.stdout.strip():
        sys.stderr.write(done.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
