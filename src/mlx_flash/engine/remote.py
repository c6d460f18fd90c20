"""Reads parts of files on the Hub. Every answer is bounded, whatever the server sends."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_session, hf_hub_url, hf_raise_for_status
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from ..errors import FormatError, ModelNotFoundError
from ..formats.safetensors import FileStamp, Header, header_length, parse_header

_TIMEOUT_S = 15.0
_MAX_JSON_BYTES = 8 * 1024 * 1024
_FIRST_BYTES = 256 * 1024  # of a file of weights: most headers are shorter
_PARTIAL = 206
_MAX_REASON = 200


class Remote:
    """The Hub at an address; without one, where huggingface_hub looks. Safe in many threads."""

    def __init__(self, endpoint: str | None = None) -> None:
        self._endpoint = endpoint or constants.ENDPOINT

    def api(self, path: str) -> Any:
        """Return what the Hub's interface answers.

        Raises:
            ModelNotFoundError: it does not answer, or not in JSON.
        """
        return _parsed(_read(f"{self._endpoint}/api/{path}", _MAX_JSON_BYTES), path)

    def json(self, repository: str, commit: str, name: str) -> Any:
        """Return what a file holds as JSON.

        Raises:
            ModelNotFoundError: it cannot be read, or is no JSON.
        """
        address = self._address(repository, commit, name)
        return _parsed(_read(address, _MAX_JSON_BYTES), f"{repository}/{name}")

    def header(
        self, repository: str, commit: str, name: str, num_bytes: int, max_bytes: int
    ) -> Header:
        """Return the header of a safetensors file of `num_bytes`, which takes at most `max_bytes`.

        Its entries have no place on this machine, but every other check was made.

        Raises:
            ModelNotFoundError: it cannot be read.
            FormatError: it is no header, or lies.
        """
        address = self._address(repository, commit, name)
        path = Path(repository, name)  # for messages
        content = _read(address, min(num_bytes, _FIRST_BYTES), 0) if num_bytes else b""
        length = header_length(content[:8], num_bytes, path)
        if length > max_bytes:
            raise FormatError(f"{path} has a header of {length} bytes: no model has.", path)
        raw = content[8 : 8 + length]
        if len(raw) < length:
            raw += _read(address, length - len(raw), 8 + len(raw))
        if len(raw) < length:
            raise FormatError(f"{path} ends within its header.", path)
        return parse_header(raw, path, FileStamp(0, 0, num_bytes, 0))

    def _address(self, repository: str, commit: str, name: str) -> str:
        return hf_hub_url(repository, name, revision=commit, endpoint=self._endpoint)


def _read(address: str, num_bytes: int, first: int | None = None) -> bytes:
    """Return what is at an address, at most `num_bytes` of it, or only those from `first` on.

    Raises:
        ModelNotFoundError: it cannot be had, for whatever reason.
    """
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if first is not None:
        headers["Range"] = f"bytes={first}-{first + num_bytes - 1}"
    content = bytearray()
    try:
        with get_session().stream("GET", address, headers=headers, timeout=_TIMEOUT_S) as response:
            hf_raise_for_status(response)
            if first and response.status_code != _PARTIAL:
                raise ValueError("the server sends whole files only")
            for chunk in response.iter_raw():
                content += chunk
                if len(content) >= num_bytes:
                    break
    except OfflineModeIsEnabled as error:
        raise ModelNotFoundError("HF_HUB_OFFLINE is set") from error
    except Exception as error:  # of whichever HTTP library huggingface_hub is built on
        raise ModelNotFoundError(_first_line(error)) from error
    return bytes(content[:num_bytes])


def _parsed(content: bytes, what: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelNotFoundError(f"{what} is not JSON on the Hub") from error


def _first_line(error: Exception) -> str:
    """Return what an error says in one line, without what a terminal would obey."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:_MAX_REASON]
    return "".join(letter if letter.isprintable() else "?" for letter in line).rstrip(".")
