"""`mlx-flash serve`: the model behind OpenAI, Anthropic and Ollama APIs."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..config import (
    READERS,
    CacheOptions,
    KernelOptions,
    MemoryLimit,
    ReadOptions,
    check_either,
)
from ..errors import OptionError
from ..folders import profile_folder, prompt_cache_folder, warm_start_folder
from ..server.options import AccessOptions, QueueOptions, WorkerOptions
from .options import (
    Capacity,
    Kernels,
    Memory,
    Model,
    Policy,
    Prefetch,
    Profile,
    Reader,
    TraceTo,
    WarmStart,
)

_KEY_VARIABLE = "MLX_FLASH_API_KEY"

Host = Annotated[str, typer.Option(help="Address to listen on; not a local one needs --api-key.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")]
ApiKey = Annotated[
    list[str] | None,
    typer.Option(
        "--api-key",
        help="Key that clients must send, 8 characters or more; may be given more than once, or in "
        f"{_KEY_VARIABLE}.",
    ),
]
ApiKeyFile = Annotated[
    Path | None, typer.Option("--api-key-file", help="File with a key on each line.")
]
AllowOrigin = Annotated[
    list[str] | None,
    typer.Option("--allow-origin", help="Web pages that may ask, such as https://chat.example."),
]
AllowHost = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-host", help="Name by which clients reach this server, such as nas.local."
    ),
]
MaxContext = Annotated[
    int | None,
    typer.Option(
        "--max-context",
        help="Tokens of the longest request, its answer included; memory is set aside for them. "
        "Default: the model's own, at most 16384.",
    ),
]
MaxBatch = Annotated[
    int, typer.Option("--max-batch", help="Answers that are under way at once, at most.")
]
FastBatch = Annotated[
    bool,
    typer.Option(
        "--fast-batch",
        help="On a GPU, compute the answers of several clients together. Faster, and not exact: "
        "an answer beside others may differ from the same one alone.",
    ),
]
MaxWaiting = Annotated[int, typer.Option("--max-waiting", help="Requests that may wait in line.")]
Timeout = Annotated[
    float, typer.Option(help="Seconds that a request may take, its waiting included.")
]
KvBits = Annotated[
    int | None,
    typer.Option(
        "--kv-bits",
        help="Keep the KV cache in 8 or 4 bits: less memory, not quite the same answers.",
    ),
]
PromptCacheGb = Annotated[
    float,
    typer.Option(
        "--prompt-cache-gb",
        min=0.0,
        help="GB of disk for computed prompts, kept across restarts; 0 keeps none.",
    ),
]
DefaultTemp = Annotated[
    float | None,
    typer.Option(
        "--temp",
        min=0.0,
        help="Temperature for requests that name none. Default: the model's own, else 0.",
    ),
]


def command(
    model: Model = None,
    host: Host = AccessOptions.host,
    port: Port = AccessOptions.port,
    memory: Memory = None,
    capacity: Capacity = None,
    policy: Policy = CacheOptions.policy,
    kernels: Kernels = None,
    reader: Reader = READERS[0],
    prefetch: Prefetch = ReadOptions.prefetch,
    warm_start: WarmStart = True,
    profile: Profile = None,
    trace: TraceTo = None,
    max_context: MaxContext = None,
    max_batch: MaxBatch = WorkerOptions.max_batch,
    fast_batch: FastBatch = WorkerOptions.fast_batch,
    max_waiting: MaxWaiting = QueueOptions.max_waiting,
    timeout: Timeout = QueueOptions.timeout_s,
    kv_bits: KvBits = None,
    prompt_cache_gb: PromptCacheGb = WorkerOptions.prompt_cache_bytes / 1e9,
    temperature: DefaultTemp = None,
    api_key: ApiKey = None,
    api_key_file: ApiKeyFile = None,
    allow_origin: AllowOrigin = None,
    allow_host: AllowHost = None,
) -> None:
    """Serve a model to any client: OpenAI, Anthropic and Ollama APIs, and a dashboard at /."""
    access = AccessOptions(
        host=host,
        port=port,
        api_keys=_keys(api_key, api_key_file),
        origins=tuple(allow_origin or ()),
        hosts=tuple(allow_host or ()),
    )
    _check_now(memory, capacity, policy, kernels, reader)
    worker = WorkerOptions(
        model=model,
        memory=memory,
        capacity=capacity,
        policy=policy,
        kernels=kernels,
        reader=reader,
        prefetch=prefetch,
        profile=profile,
        warm_start=_text(warm_start_folder() if warm_start else None),
        profile_folder=_text(profile_folder()),
        trace=_text(trace),
        max_context=max_context,
        max_batch=max_batch,
        fast_batch=fast_batch,
        kv_bits=kv_bits,
        prompt_cache=_text(prompt_cache_folder()),
        prompt_cache_bytes=int(prompt_cache_gb * 10**9),
        temperature=temperature,
    )
    from ..server.gateway.serve import serve

    console = Console(stderr=True, highlight=False, markup=False)
    serve(
        access,
        QueueOptions(max_waiting=max_waiting, timeout_s=timeout),
        worker,
        lambda line: console.print(f"mlx-flash: {line}", soft_wrap=True),
    )


def _check_now(
    memory: str | None, capacity: int | None, policy: str, kernels: str | None, reader: str
) -> None:
    """Refuse options that make no sense before anything is started."""
    check_either(MemoryLimit.parse(memory), CacheOptions(policy=policy, capacity=capacity))
    KernelOptions(kernels=kernels)
    ReadOptions.direct_by(reader)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _keys(given: list[str] | None, file: Path | None) -> tuple[str, ...]:
    """Return the keys of the options, the environment and a file.

    Raises:
        OptionError: the file cannot be read, or holds none.
    """
    keys = list(given or ())
    if variable := os.environ.get(_KEY_VARIABLE):
        keys.append(variable)
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise OptionError(f"cannot read the keys in {file}: {error}.") from error
        if not lines:
            raise OptionError(f"{file} holds no key: write one on each line.")
        keys += lines
    return tuple(keys)
