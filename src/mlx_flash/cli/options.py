"""The options of the commands: flags, bounds and help. Defaults are where a command takes them."""

from pathlib import Path
from typing import Annotated

import typer

from ..config import CHAT_CONTEXT_TOKENS, KERNEL_NAMES, POLICY_NAMES, PREDICTOR_NAMES

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
Prompt = Annotated[
    str, typer.Option("-p", "--prompt", help="The prompt; - reads it from standard input.")
]
Model = Annotated[
    str | None, typer.Argument(help="A folder or a Hub id; left out, the bundled model.")
]
MaxTokens = Annotated[
    int, typer.Option("-n", "--max-tokens", min=1, help="Tokens to generate at most.")
]
Memory = Annotated[
    str | None,
    typer.Option(
        help="Memory for the whole model: 6GB, 40% of its need, or all. "
        "Default: what the machine can spare."
    ),
]
Temperature = Annotated[
    float, typer.Option("--temp", min=0.0, help="Sampling temperature; 0 is greedy.")
]
Seed = Annotated[int | None, typer.Option(help="Seed of the sampling.")]
Capacity = Annotated[
    int | None, typer.Option(min=1, help="Fix the slots per layer instead of the memory.")
]
Policy = Annotated[str, typer.Option(help=f"Which expert leaves first: {', '.join(POLICY_NAMES)}.")]
Kernels = Annotated[
    str | None,
    typer.Option(
        help=f"What computes: {' or '.join(KERNEL_NAMES)}. Default: the best for the device."
    ),
]
WarmStart = Annotated[
    bool,
    typer.Option(
        "--warm-start/--cold",
        help="Read back in the background what the model last had in memory, and remember it.",
    ),
]
Reader = Annotated[
    str,
    typer.Option(
        help="How experts are read: direct, past the page cache; buffered, through it; or auto, by "
        "the memory that is free."
    ),
]
Prefetch = Annotated[
    bool | None,
    typer.Option(
        "--prefetch/--no-prefetch",
        help="Read what the next layer may ask for, as long as that pays. Default: on the CPU.",
    ),
]
Predictor = Annotated[
    str, typer.Option(help=f"What guesses for --prefetch: {', '.join(PREDICTOR_NAMES)}.")
]
Verify = Annotated[
    bool, typer.Option(help="Compare each record of a packed model with its checksum.")
]
SsdMaxGbps = Annotated[
    float | None, typer.Option(help="Read no more than so many GB per second on the average.")
]
SsdMaxTemp = Annotated[
    float | None,
    typer.Option(help="Pause reading while the disk is hotter than so many degrees Celsius."),
]
ChatTemplate = Annotated[bool, typer.Option(help="Put the prompt into the model's chat template.")]
Profile = Annotated[
    str | None,
    typer.Option(
        help="What you are about to do: coding, writing, math, chat, or one of your own (mlx-flash "
        "trace --profile). The experts that it uses most are read before the first token."
    ),
]
SplitBy = Annotated[
    Path | None,
    typer.Option(
        "--split-by",
        help="Routing of this model, by mlx-flash trace: layers get slots by what they gain on it, "
        "where that beats the same number for each.",
    ),
]
System = Annotated[str, typer.Option(help="What the model is told before the conversation.")]
MaxContext = Annotated[
    int | None,
    typer.Option(
        min=32,
        help="Tokens of conversation to set memory aside for; older turns are left out. "
        f"Default: what the model holds, {CHAT_CONTEXT_TOKENS} at most.",
    ),
]
Markdown = Annotated[bool, typer.Option("--markdown/--no-markdown", help="Render Markdown.")]
TraceTo = Annotated[
    Path | None,
    typer.Option("--trace", help="Append the routing of this run to a file, for mlx-flash replay."),
]
