"""Signatures of thinking: what lets a client bring back thoughts that it was not shown."""

import base64
import binascii

_SHOWN = "mlx-flash"
_HIDDEN = "mlx-flash:"


def signature_of(thinking: str, shown: bool) -> str:
    """Return the signature of thoughts: a mark when they are shown, else themselves, encoded.

    The template of a model that calls tools wants its earlier thoughts, and a prompt without them
    is another than the one that has been computed.
    """
    if shown:
        return _SHOWN
    return _HIDDEN + base64.b64encode(thinking.encode("utf-8", "replace")).decode()


def thinking_in(signature: str | None) -> str:
    """Return the thoughts that a signature holds; none when it is another server's."""
    if not signature or not signature.startswith(_HIDDEN):
        return ""
    try:
        return base64.b64decode(signature.removeprefix(_HIDDEN), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return ""
