"""The OpenAI Responses API: answers as lists of items, and conversations that the server keeps."""

from .routes import router
from .store import Store

__all__ = ["Store", "router"]
