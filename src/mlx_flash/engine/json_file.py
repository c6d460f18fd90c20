"""Small files of JSON: read within a bound, and replaced all at once or not at all."""

import json
import os
import threading
from pathlib import Path
from typing import Any


def read_json(path: Path, max_bytes: int) -> Any:
    """Return what a file holds, of which nothing is certain; None for one above `max_bytes`.

    Raises:
        OSError, ValueError, RecursionError: it cannot be read, or is no JSON.
    """
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    return json.loads(content) if len(content) <= max_bytes else None


def replace_json(path: Path, content: Any) -> None:
    """Put `content` in the place of a file in one step; make its folder, for this user alone.

    Processes and threads may do so at the same time: one of them wins. What a killed one leaves
    has the name of the file, then its process and its thread.

    Raises:
        OSError: the disk refuses; what was there is unchanged.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        part.write_bytes(json.dumps(content, separators=(",", ":")).encode())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
