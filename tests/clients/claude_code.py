"""Asks a server by way of Claude Code without its terminal: `claude_code.py BASE_URL CLAUDE`.

It runs with a home of its own and a key that means nothing, and sees no server but this one.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

KEY = "dummykey123"


def ask(base_url: str, claude: str, prompt: str, folder: Path, *options: str) -> dict[str, Any]:
    """Return what Claude Code reports of one prompt; `folder` is its home and where it works."""
    home, work = folder / "home", folder / "work"
    home.mkdir(exist_ok=True)
    work.mkdir(exist_ok=True)
    environment = {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "ANTHROPIC_BASE_URL": base_url,
        "ANTHROPIC_AUTH_TOKEN": KEY,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS": "32768",
        "DISABLE_AUTOUPDATER": "1",
    }
    command = [claude, "-p", prompt, "--output-format", "json", *options]
    done = subprocess.run(
        command,
        env=environment,
        cwd=work,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if not done.stdout.strip():
        raise RuntimeError(f"Claude Code said nothing and exited {done.returncode}: {done.stderr}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def main() -> int:
    """Say hello; print the answer."""
    base_url, claude = sys.argv[1:3]
    with tempfile.TemporaryDirectory() as folder:
        report = ask(base_url, claude, "hello", Path(folder))
    print(json.dumps({key: report.get(key) for key in ("is_error", "result", "usage")}))  # noqa: T201
    return int(bool(report["is_error"]) or not report["result"])


if __name__ == "__main__":
    sys.exit(main())
