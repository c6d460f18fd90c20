"""Every error that MLX-Flash raises on purpose.

MLXFlashError
├── FormatError            a file is not what its header says (path, offset)
├── ExpertReadError        a read failed or was short (layer, expert, path, offset)
├── UnsupportedModelError  nothing to stream, or a layer type we do not know
├── MemoryPlanError        does not fit; says what would, in bytes
├── ModelNotFoundError     no such path or repository
├── PromptError            the prompt is empty or does not fit the model's context
├── TraceError             a file is no routing trace, or one of another model
├── TranscriptError        a saved conversation cannot be written or read
├── PackError              a pack cannot be written: the disk is full, or refuses
├── WorkerError            the model process died or timed out
├── ConnectError           settings of another program cannot be read or written
└── OptionError            an option has a value that makes no sense
"""

from pathlib import Path


class MLXFlashError(Exception):
    """The root of the tree: catch it to catch everything below."""


class FormatError(MLXFlashError):
    """Raised when a checkpoint file is not what its header or its index says.

    `path` is the file; `offset` is the byte where it went wrong, when one is known.
    """

    def __init__(self, message: str, path: Path, offset: int | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.offset = offset


class ExpertReadError(MLXFlashError):
    """Raised when the bytes of one expert cannot be read. The expert stays non-resident."""

    def __init__(self, reason: str, *, layer: int, expert: int, path: Path, offset: int) -> None:
        super().__init__(
            f"cannot read expert {expert} of layer {layer} from {path} at offset {offset}: {reason}"
        )
        self.layer = layer
        self.expert = expert
        self.path = path
        self.offset = offset


class UnsupportedModelError(MLXFlashError):
    """Raised when a model has a type, layer or file layout that MLX-Flash cannot stream."""


class MemoryPlanError(MLXFlashError):
    """Raised when the memory asked for makes no sense or cannot hold the model.

    `needed_bytes` is the smallest limit that works, when one is known.
    """

    def __init__(self, message: str, needed_bytes: int | None = None) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes

    def advised(self, advice: str) -> "MemoryPlanError":
        """Return this error with another sentence, where the memory is too small; else itself."""
        if self.needed_bytes is None:
            return self
        return MemoryPlanError(f"{self} {advice}", self.needed_bytes)


class ModelNotFoundError(MLXFlashError):
    """Raised when a model is neither a folder with a checkpoint nor a repository on the Hub."""


class PromptError(MLXFlashError):
    """Raised when a prompt is empty, no text, or longer than the model's context."""


class PackError(MLXFlashError):
    """Raised when the disk has no room for a model that is to be written, or refuses."""


class ConnectError(MLXFlashError):
    """Raised when the settings file of another program cannot be read, understood or written."""


class TraceError(MLXFlashError):
    """Raised when a routing trace cannot be read or written, or belongs to another model."""


class TranscriptError(MLXFlashError):
    """Raised when a saved conversation cannot be written or read, or is none."""


class WorkerError(MLXFlashError):
    """Raised when the process that owns a served model dies again and again, or is silent."""


class OptionError(MLXFlashError):
    """Raised when an option has a value that makes no sense, where the option is made."""
