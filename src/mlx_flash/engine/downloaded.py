"""The models with experts that were downloaded from the Hub to this machine."""

from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import CachedRepoInfo, CachedRevisionInfo, scan_cache_dir
from huggingface_hub.errors import CacheNotFound

from ..errors import MLXFlashError
from ..formats.checkpoint import Checkpoint
from ..planner.shape import shape_of, stores_experts_one_by_one
from .seen import HubModel, is_repository, is_sound


def downloaded_models(folder: Path | None = None) -> Iterator[HubModel]:
    """Yield the models with experts in a cache folder of huggingface_hub; None is the user's.

    What is damaged, or not complete, is left out. `downloads` is 0: the files do not tell.
    """
    try:
        repositories = scan_cache_dir(folder).repos
    except (CacheNotFound, ValueError, OSError):  # no folder, a file, or not ours to read
        return
    for repository in sorted(repositories, key=lambda repository: repository.repo_id):
        if repository.repo_type == "model" and is_repository(repository.repo_id):
            model = _model(repository)
            if model is not None:
                yield model


def _model(repository: CachedRepoInfo) -> HubModel | None:
    """Return the newest complete model of a repository."""
    for revision in sorted(repository.revisions, key=_age):
        try:
            checkpoint = Checkpoint.open(revision.snapshot_path)
        except MLXFlashError:
            continue
        tensors, packed = checkpoint.tensors, checkpoint.packed.values()
        shape = shape_of(repository.repo_id, checkpoint.config, tensors, packed)
        if shape is not None and is_sound(shape):
            return HubModel(
                repository.repo_id,
                revision.commit_hash,
                0,
                revision.size_on_disk,
                shape,
                stores_experts_one_by_one(tensors),
            )
    return None


def _age(revision: CachedRevisionInfo) -> tuple[bool, float]:
    """Return a key that puts what a load would take first, then what is newest."""
    return "main" not in revision.refs, -revision.last_modified
