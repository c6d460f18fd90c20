"""The Anthropic API: messages, streamed or whole, and the counting of their tokens."""

from .routes import router

__all__ = ["router"]
