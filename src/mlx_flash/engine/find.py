"""Finds a model: the bundled one, a folder, or a repository on the Hub."""

import re
from importlib import resources
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from ..errors import ModelNotFoundError

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
PATTERNS = (
    "*.json",
    "model*.safetensors",
    "experts-*.safetensors",  # of the packed store
    "tokenizer.model",
    "*.tiktoken",
    "*.txt",
    "*.jinja",
)
"""The files of a repository that are downloaded."""


def bundled_model() -> Path:
    """Return the folder of the model that ships with the package."""
    return Path(str(resources.files("mlx_flash.assets") / "model"))


def model_name(folder: Path) -> str:
    """Return what to call the model in a folder: its Hub id where it was downloaded from there."""
    if folder == bundled_model():
        return "bundled"
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/", 1)
    return folder.resolve().name


def find_model(name: str | Path | None) -> Path:
    """Return the folder of a model; download it, with a progress bar, when it is a Hub id.

    None is the bundled model.

    Raises:
        ModelNotFoundError: neither a folder nor a repository that can be reached.
    """
    if name is None:
        return bundled_model()
    try:
        path = Path(name).expanduser()
        is_folder, exists = bool(str(name)) and path.is_dir(), path.exists()
    except (OSError, RuntimeError) as error:  # too long a name, or the home of an unknown user
        raise ModelNotFoundError(f"{name} is no path: {error}") from error
    if is_folder:
        return path
    if exists and str(name):
        raise ModelNotFoundError(f"{path} is a file: give the folder of an MLX checkpoint.")
    if not _REPOSITORY.fullmatch(str(name)):
        raise ModelNotFoundError(
            f"{str(name) or 'an empty name'} does not exist: give the folder of an MLX checkpoint "
            "or a Hub id (owner/name)."
        )
    return _download(str(name))


def find_local(name: str | Path | None) -> Path | None:
    """Return the folder of a model that is on this machine; None for a Hub id that is not.

    Raises:
        ModelNotFoundError: neither a folder nor what a repository may be called.
    """
    if name is not None and _REPOSITORY.fullmatch(str(name)) and not Path(name).exists():
        try:
            return Path(snapshot_download(str(name), local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError):
            return None
    return find_model(name)


def _download(repository: str) -> Path:
    try:
        return Path(snapshot_download(repository, allow_patterns=list(PATTERNS)))
    except GatedRepoError as error:
        raise ModelNotFoundError(
            f"{repository} asks for a permission on the Hub: accept its terms there and log in "
            "with `hf auth login`."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelNotFoundError(
            f"{repository} is neither a folder here nor a model on the Hub."
        ) from error
    except LocalEntryNotFoundError as error:
        raise ModelNotFoundError(
            f"{repository} is not on this machine and the Hub cannot be reached: connect to the "
            "network, or give a folder."
        ) from error
    except Exception as error:
        raise ModelNotFoundError(f"cannot download {repository}: {error}") from error
