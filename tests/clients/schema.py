"""Asks a server what its own OpenAPI document allows, and more: `schema.py BASE_URL [CASES]`.

Every answer must be as the document says, and none a fault of the server. Prints how many requests
were sent. What is refused for its meaning (a prompt without text, a tool that is not there) fits
the schema of its body, so whether bodies are accepted is not checked.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

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
    cases = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    with tempfile.TemporaryDirectory() as folder:
        done = check(sys.argv[1].rstrip("/"), cases, Path(folder) / "junit.xml")
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
