"""Options of the server, validated where they are made. Each default lives here, once."""

import ipaddress
import math
import re
from dataclasses import dataclass, field

from ..errors import OptionError

DEFAULT_PORT = 8080

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]+")
_HOST = re.compile(r"[^/\s:]+|\[?[0-9a-fA-F:.]+\]?")


@dataclass(frozen=True, kw_only=True)
class AccessOptions:
    """Who may ask, from where, and how much.

    Without `api_keys` everybody on this machine may; `host` must then be a loopback address.
    `origins` are those of web pages that may ask, besides pages of this machine; `hosts` are names
    that the server is reached by, besides its address and localhost. A body above `max_body_bytes`
    is refused.

    Raises:
        OptionError: a value that makes no sense, or a server open to the network without a key.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    max_body_bytes: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise OptionError(f"{self.port} is no port: give 0 to 65535; 0 takes a free one.")
        if any(len(key) < 8 or not key.isascii() or not key.isprintable() for key in self.api_keys):
            raise OptionError("an API key has 8 or more printable ASCII characters: give another.")
        for origin in self.origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise OptionError(f"{origin!r} is no origin: give one like https://chat.example.")
        for name in self.hosts:
            if not _HOST.fullmatch(name):
                raise OptionError(f"{name!r} is no name of a machine: give one like nas.local.")
        if not self.is_loopback and not self.api_keys:
            raise OptionError(
                f"{self.host} can be reached by other machines: give --api-key, too, or listen on "
                "127.0.0.1."
            )
        if self.max_body_bytes < 1024:
            raise OptionError("a body limit below 1024 bytes refuses every request: give more.")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True, kw_only=True)
class QueueOptions:
    """How many requests may wait, and how long one may take, its waiting included.

    A worker that dies is started again; while it stops, `drain_s` are for the answers under way.

    Raises:
        OptionError: a number that is too small.
    """

    max_waiting: int = 256
    timeout_s: float = 3600.0
    drain_s: float = 30.0

    def __post_init__(self) -> None:
        if self.max_waiting < 1:
            raise OptionError(f"a queue of {self.max_waiting} serves nobody: give 1 or more.")
        if not 0 < self.timeout_s < math.inf or not 0 <= self.drain_s < math.inf:
            raise OptionError("a timeout is a number of seconds above 0: give another.")


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """What the worker loads, and how it answers.

    `model`, `memory`, `capacity`, `policy`, `kernels`, `reader`, `prefetch` and `profile` are as
    for `mlx-flash generate`. One request has at most `max_context` tokens; None takes the model's
    own, at most 16384. `max_batch` answers are under way at once. Where MLX's own kernels compute,
    as on a GPU, the bits of a batch depend on its size: there it is one, or with `fast_batch` as
    many. The KV cache is kept in `kv_bits` (8 or 4) instead of the model's floats; that changes
    what the model says.
    `prompt_cache` is the folder that keeps computed prompts across restarts, in at most
    `prompt_cache_bytes`; None keeps none. `temperature` and so on are for requests that say
    nothing; None takes what the model's generation config says.
    """

    model: str | None = None
    memory: str | None = None
    capacity: int | None = None
    policy: str = "forward"
    kernels: str | None = None
    reader: str = "auto"
    prefetch: bool | None = None
    profile: str | None = None
    warm_start: str | None = None
    profile_folder: str | None = None
    trace: str | None = None
    max_context: int | None = None
    max_batch: int = 16
    fast_batch: bool = False
    kv_bits: int | None = None
    prompt_cache: str | None = None
    prompt_cache_bytes: int = 10 * 10**9
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        if self.max_context is not None and self.max_context < 16:
            raise OptionError(
                f"a context of {self.max_context} tokens holds no question: give 16 or more."
            )
        if not 1 <= self.max_batch <= 256:
            raise OptionError(f"{self.max_batch} answers at once cannot be: give 1 to 256.")
        if self.kv_bits not in (None, 4, 8):
            raise OptionError(f"a KV cache of {self.kv_bits} bits cannot be: take 8 or 4.")
        if self.prompt_cache_bytes < 0:
            raise OptionError("the prompt cache cannot be smaller than 0 bytes: give 0 or more.")
