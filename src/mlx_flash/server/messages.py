"""What the gateway and the worker say to each other: small typed messages, and nothing else.

`request` is the gateway's number of a request; it never repeats, not even for a new worker.
Times are seconds, sizes bytes.
"""

from typing import Any, Literal

from msgspec import Struct


class Sampling(Struct, frozen=True, kw_only=True):
    """How tokens are drawn. None is the server's default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] = {}
    seed: int | None = None


class ChatPrompt(Struct, frozen=True, kw_only=True, tag=True):
    """A conversation for the model's chat template, in the form that templates take.

    `messages` have a `role` (system, user, assistant, tool) and a string `content`; an assistant's
    may have `tool_calls`, a list of `{"id", "type": "function", "function": {"name", "arguments"}}`
    with `arguments` a dict, and `reasoning_content`; a tool's has `tool_call_id` and `name`.
    `tools` are `{"type": "function", "function": {"name", "description", "parameters"}}`.
    `template_options` go to the template, such as `enable_thinking`. With `continue_last` the
    answer goes on where the last message, an assistant's, ends.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = []
    template_options: dict[str, Any] = {}
    continue_last: bool = False


class TextPrompt(Struct, frozen=True, kw_only=True, tag=True):
    """Text that goes to the model as it is; before `suffix`, for a model that fills in."""

    text: str
    suffix: str = ""


class TokenPrompt(Struct, frozen=True, kw_only=True, tag=True):
    """Tokens that go to the model as they are."""

    tokens: list[int]


Prompt = ChatPrompt | TextPrompt | TokenPrompt


class Grammar(Struct, frozen=True, kw_only=True):
    """What the answer must look like: `json` is any object, `schema` JSON by a schema.

    `text` is the schema as JSON, or the regular expression, or the Lark grammar. `compact` JSON has
    no white space.
    """

    kind: Literal["json", "schema", "regex", "lark"]
    text: str = ""
    compact: bool = False


class Generate(Struct, frozen=True, kw_only=True, tag=True):
    """Asks for an answer.

    `max_tokens` None is all that the context leaves. An answer ends before any of `stop`.
    `top_logprobs` wants log-probabilities of each token and of so many others; None wants none.
    `echo` sends the prompt as the first piece, with log-probabilities where those are wanted, and
    permits `max_tokens` 0. `tool_choice` is auto, none, required, or `=` and the name of a tool.
    """

    request: int
    prompt: Prompt
    max_tokens: int | None = None
    stop: list[str] = []
    sampling: Sampling = Sampling()
    grammar: Grammar | None = None
    top_logprobs: int | None = None
    echo: bool = False
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True


class Cancel(Struct, frozen=True, tag=True):
    """Says that nobody waits for an answer any more."""

    request: int


class Count(Struct, frozen=True, tag=True):
    """Asks how many tokens a prompt has. Answered by `Counted`."""

    request: int
    prompt: Prompt


class Tokenize(Struct, frozen=True, kw_only=True, tag=True):
    """Asks for the tokens of a text or chat. Answered by `Tokenized`."""

    request: int
    prompt: Prompt
    add_special: bool = False


class Detokenize(Struct, frozen=True, tag=True):
    """Asks for the text of tokens. Answered by `Rendered`."""

    request: int
    tokens: list[int]


class Render(Struct, frozen=True, tag=True):
    """Asks for a chat as the model's template writes it. Answered by `Rendered`."""

    request: int
    prompt: ChatPrompt


class Stop(Struct, frozen=True, tag=True):
    """Tells the worker to end; the gateway has waited for the answers under way."""


ToWorker = Generate | Cancel | Count | Tokenize | Detokenize | Render | Stop


class ModelCard(Struct, frozen=True, kw_only=True):
    """What clients may know of the model that is served.

    `context_tokens` is the most that one request may have, prompt and answer. `layers` and
    `capacity` are of the streamed experts: how many layers, slots per layer; 0 when resident.
    `sampling` is how tokens are drawn for requests that do not say.
    `lossy` lists what makes answers differ from the model's own; empty when they are exact.
    """

    name: str
    model_type: str
    context_tokens: int
    trained_context_tokens: int | None
    num_parameters: int
    size_bytes: int
    quantization: str
    chat_template: str
    has_tools: bool
    has_thinking: bool
    layers: int
    experts_per_layer: int
    top_k: int
    capacity: int
    memory_limit_bytes: int
    resident_bytes: int
    slot_bytes: int
    kv_bytes: int
    backend: str
    kernels: str
    max_batch: int
    lossy: list[str] = []
    sampling: Sampling = Sampling()


class Loading(Struct, frozen=True, tag=True):
    """Says what the worker is doing before it is ready."""

    what: str


class Ready(Struct, frozen=True, tag=True):
    """Says that the worker answers from now on; `remarks` are for whoever started the server."""

    card: ModelCard
    remarks: list[str] = []


class LoadFailed(Struct, frozen=True, tag=True):
    """Says why the model cannot be loaded; the worker ends. `users_fault`: trying again is vain."""

    message: str
    users_fault: bool


class Accepted(Struct, frozen=True, tag=True):
    """The request is sound and waits its turn."""

    request: int
    prompt_tokens: int


class Started(Struct, frozen=True, tag=True):
    """The prompt is being computed, but for its first `cached_tokens`, which were remembered."""

    request: int
    cached_tokens: int


class Prefilled(Struct, frozen=True, tag=True):
    """`done` of `total` prompt tokens are computed."""

    request: int
    done: int
    total: int


class TokenLogprob(Struct, frozen=True):
    """A token with its log-probability, and the likeliest tokens at its place, itself or not.

    `logprob` is None for the first token of a prompt. `text` may hold half a character; `data` is
    then what it stands for.
    """

    token: int
    text: str
    data: bytes
    logprob: float | None
    top: list[tuple[int, str, bytes, float]]


class Piece(Struct, frozen=True, tag=True):
    """A piece of the answer. `num_tokens` were drawn for it; text may lag behind tokens."""

    request: int
    kind: Literal["text", "reasoning", "prompt"]
    text: str
    num_tokens: int = 1
    logprobs: list[TokenLogprob] = []


class ToolCall(Struct, frozen=True, tag=True):
    """The model calls a tool; `arguments` is a JSON object as text."""

    request: int
    name: str
    arguments: str


class Finished(Struct, frozen=True, kw_only=True, tag=True):
    """The answer is complete.

    `reason`: stop (the model ended it, or a stop text, which `stop_text` then is), length
    (max_tokens), context (the context is full), or tools.
    """

    request: int
    reason: Literal["stop", "length", "context", "tools"]
    stop_text: str | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    queue_s: float
    prefill_s: float
    decode_s: float


FailureKind = Literal["invalid", "context_length", "overloaded", "unavailable", "internal"]


class Failed(Struct, frozen=True, tag=True):
    """There is no answer, or no more of it; `message` is one sentence for the user."""

    request: int
    kind: FailureKind
    message: str


class Counted(Struct, frozen=True, tag=True):
    """Answers `Count`."""

    request: int
    num_tokens: int


class Tokenized(Struct, frozen=True, tag=True):
    """Answers `Tokenize`; `pieces` are the bytes of each token."""

    request: int
    tokens: list[int]
    pieces: list[bytes]


class Rendered(Struct, frozen=True, tag=True):
    """Answers `Render` and `Detokenize`."""

    request: int
    text: str


class LayerHits(Struct, frozen=True):
    """Asks and hits of one streamed layer since the model was loaded."""

    asks: int
    hits: int
    capacity: int


class Snapshot(Struct, frozen=True, kw_only=True, tag=True):
    """What the worker did since it started, and where it stands. Sent twice a second.

    `running` sequences are computed together, `waiting` are not begun. `prompt_tokens` counts a
    prompt when it is begun, `prefilled_tokens` its tokens as they are computed. KV cache:
    `kv_bytes` of requests under way, `remembered_bytes` of earlier ones, both of `kv_limit_bytes`.
    `model_bytes` is what MLX holds. Of `gap`, see `more_memory_gains`: what (bytes, hit rate) the
    plan expects of more memory.
    """

    time_s: float
    running: int
    waiting: int
    prompt_tokens: int
    cached_tokens: int
    generation_tokens: int
    kv_bytes: int
    remembered_bytes: int
    kv_limit_bytes: int
    model_bytes: int
    peak_model_bytes: int
    rss_bytes: int
    memory_limit_bytes: int
    capacity: int
    asks: int
    hits: int
    bytes_read: int
    stall_s: float
    busy_s: float
    prefetched: int
    prefetch_hits: int
    resized: int
    ssd_bytes_written: int | None
    direct_io: bool
    disk_temperature_c: float | None
    layers: list[LayerHits]
    more_memory_gains: list[tuple[int, float]]
    prefilled_tokens: int = 0


Event = Accepted | Started | Prefilled | Piece | ToolCall | Finished | Failed
Reply = Counted | Tokenized | Rendered | Failed
FromWorker = (
    Loading
    | Ready
    | LoadFailed
    | Snapshot
    | Accepted
    | Started
    | Prefilled
    | Piece
    | ToolCall
    | Finished
    | Failed
    | Counted
    | Tokenized
    | Rendered
)
