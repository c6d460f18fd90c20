"""Asks a server what its own OpenAPI document allows: `schema.py [--url URL] [--cases N]`.

Without a URL it asks the gateway in front of a stand-in for the worker. Needs schemathesis. Every
answer must be as the document says, and none a fault of the server. Prints how many requests were
sent. What is refused for its meaning (a prompt without text, a tool that is not there) fits
the schema of its body, so whether bodies are accepted is not checked.
"""

import argparse
import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from listening import listening
from serving import FakeBackend

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
)


def check(base_url: str, cases: int, out: Path) -> "subprocess.CompletedProcess[str]":
    """Send up to `cases` generated requests to each operation; `out` gets the report."""
    command = [
        *(str(Path(sys.executable).parent / "schemathesis"), "run", f"{base_url}/openapi.json"),
        *("--checks", ",".join(CHECKS), "--max-examples", str(cases), "--workers", "8"),
        *("--phases", "examples,coverage,fuzzing", "--continue-on-failure", "--no-color"),
        *("--request-timeout", "120", "--exclude-path-regex", "events"),
        *("--report", "junit", "--report-junit-path", str(out), "--seed", "1"),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def main() -> int:
    """Print what schemathesis says."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--url")
    options.add_argument("--cases", type=int, default=100, help="for each operation, at most")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        url = given.url or stack.enter_context(listening(FakeBackend()))
        done = check(url.rstrip("/"), given.cases, Path(folder) / "junit.xml")
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
