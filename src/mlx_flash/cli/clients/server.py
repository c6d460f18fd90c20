"""The server that clients are to call, as they see it."""

from dataclasses import dataclass

DEFAULT_URL = "http://127.0.0.1:8080"
KEY_VARIABLE = "MLX_FLASH_API_KEY"
PROVIDER = "mlx-flash"  # what clients call us, and the key that they send where none is asked for
TITLE = "MLX-Flash"
_MAX_OUTPUT = 32000


@dataclass(frozen=True)
class Server:
    """A server as clients see it. `context` and `output` are in tokens."""

    url: str
    model: str
    context: int
    api_key: str | None = None

    @property
    def openai_url(self) -> str:
        """The base URL of the OpenAI API."""
        return f"{self.url}/v1"

    @property
    def key(self) -> str:
        """The key to send: many clients insist on one where the server does not."""
        return self.api_key or PROVIDER

    @property
    def output(self) -> int:
        """The tokens that one answer may have, so that the prompt keeps most of the context."""
        return max(1, min(_MAX_OUTPUT, self.context // 4))
