"""Runs mlx-lm's own model tests twice, without and with streaming, and compares what passed.

The tests come from the source distribution of the installed mlx-lm. Exits with 1 when a test
that passes without streaming fails with it.
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".upstream"


def tests_file() -> Path:
    """Return mlx-lm's tests/test_models.py, fetched once into `.upstream`."""
    name = f"mlx_lm-{version('mlx-lm')}"
    target = CACHE / name / "tests" / "test_models.py"
    if not target.exists():
        CACHE.mkdir(exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        wanted = ["--no-binary", "mlx-lm", "-d", str(CACHE), f"mlx-lm=={version('mlx-lm')}"]
        subprocess.run([*pip, *wanted], check=True)
        with tarfile.open(CACHE / f"{name}.tar.gz") as archive:
            member = archive.extractfile(f"{name}/tests/test_models.py")
            assert member is not None, "the source distribution has no tests/test_models.py"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(member.read())
    return target


def outcomes(mode: str, *selection: str) -> dict[str, str]:
    """Run the tests in a mode of the plugin; return the outcome of each by name.

    Under "" stands what was streamed.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        environment = os.environ | {
            "PYTHONPATH": str(HERE),
            "UPSTREAM_REPORT": str(report),
            "UPSTREAM_MODE": mode,
        }
        command = [sys.executable, "-m", "pytest", "-q", "-p", "plugin", "-c", os.devnull]
        command += ["--rootdir", str(CACHE), "-p", "no:cacheprovider", *selection]
        log = report.with_suffix(".log")
        with log.open("w") as out:
            subprocess.run(
                [*command, str(tests_file())], env=environment, stdout=out, stderr=out, check=False
            )
        if not report.exists():
            sys.exit(log.read_text())
        result: dict[str, str] = json.loads(report.read_text())
        return result


def main() -> None:
    """Compare and report."""
    plain, streamed = outcomes("plain"), outcomes("streaming")
    summary = streamed.pop("")
    plain.pop("")
    if not list(plain.values()).count("passed") or summary.startswith("0 "):
        sys.exit(f"nothing was compared: {summary}")
    for name, found in (("without streaming", plain), ("with streaming", streamed)):
        counts = {kind: list(found.values()).count(kind) for kind in sorted({*found.values()})}
        sys.stdout.write(f"{name}: {counts}\n")
    sys.stdout.write(f"{summary}\n")
    lost = sorted(n for n, kind in plain.items() if kind == "passed" and streamed[n] != "passed")
    evaluated = outcomes("evaluated", "-k", " or ".join(lost)) if lost else {}
    for name in lost:
        if evaluated[name] == "failed":
            why = "passes without streaming only because it never computes its result"
            sys.stdout.write(f"{name}: {why}; MLX cannot on this back end\n")
        else:
            sys.stdout.write(f"{name}: passes only without streaming\n")
    sys.exit(1 if any(evaluated[name] != "failed" for name in lost) else 0)


if __name__ == "__main__":
    main()
