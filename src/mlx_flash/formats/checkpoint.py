"""A checkpoint folder in MLX format: its config and where each of its tensors lies."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import FormatError, ModelNotFoundError
from .packed import PackedLayer, find_packed
from .safetensors import TensorEntry, read_header

_MODEL_TYPE = re.compile(r"[A-Za-z0-9_-]+")  # it becomes the name of a module to import
_INDEX = "model.safetensors.index.json"

PACK_RECORD = "pack.json"
"""The file in which `mlx-flash pack` notes what it packs, as long as it works and afterwards."""


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: `config` is config.json, `tensors` every tensor of every shard.

    `packed` are the layers whose experts are in the packed store, by the path of their module.
    """

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]
    packed: Mapping[str, PackedLayer] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> "Checkpoint":
        """Return the checkpoint in `folder`, each shard's header checked against its file.

        Raises:
            ModelNotFoundError: no such folder, no config.json, or no weights in it.
            FormatError: a file is truncated, unreadable, lies about its content, or is missing.
        """
        if any(character in str(folder) for character in "*?["):
            raise ModelNotFoundError(
                f"{folder} has one of * ? [ in its path, which mlx-lm cannot load: rename it."
            )
        if not folder.is_dir():
            raise ModelNotFoundError(f"{folder} is not a folder with a model.")
        if not (folder / "config.json").is_file() and (folder / PACK_RECORD).is_file():
            raise ModelNotFoundError(
                f"{folder} is not packed to its end: run mlx-flash pack again, with the same model "
                "and options, to finish it."
            )
        if not (folder / "config.json").is_file():
            raise ModelNotFoundError(
                f"{folder} has no config.json: give the folder of an MLX checkpoint."
            )
        _check_pack(folder)
        config = read_json_object(folder / "config.json")
        if not _MODEL_TYPE.fullmatch(str(config.get("model_type", ""))):
            path = folder / "config.json"
            raise FormatError(f"{path} names no model_type that a model could have.", path)
        shards = sorted(folder.glob("model*.safetensors"))
        if not shards:
            raise ModelNotFoundError(f"{folder} has no weights: no model*.safetensors file.")
        _check_index(folder, shards)
        tensors: dict[str, TensorEntry] = {}
        for shard in shards:
            for name, entry in read_header(shard).tensors.items():
                if name in tensors:
                    raise FormatError(
                        f"{shard} and {tensors[name].path} both hold tensor {name!r}: "
                        "remove the shards that are not part of the model.",
                        shard,
                        entry.offset,
                    )
                tensors[name] = entry
        return cls(folder, config, tensors, find_packed(folder))

    @property
    def context_tokens(self) -> int | None:
        """The longest context that the config promises, or None when it names none."""
        return self._count("max_position_embeddings")

    @property
    def num_attention_heads(self) -> int:
        """Attention heads per layer that the config names, 0 when it names none."""
        return self._count("num_attention_heads") or 0

    def _count(self, key: str) -> int | None:
        """Return a positive integer of the config, or of its text part."""
        text_config = self.config.get("text_config")
        for config in (self.config, text_config if isinstance(text_config, dict) else {}):
            value = config.get(key)
            if type(value) is int and value > 0:
                return value
        return None


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        FormatError: the file cannot be read or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror or error}.", path) from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not valid JSON: {error}.", path) from error
    if not isinstance(value, dict):
        raise FormatError(f"{path} does not hold a JSON object.", path)
    return value


def _check_pack(folder: Path) -> None:
    """Raise FormatError when a file of a pack is not there, or has another size."""
    record = folder / PACK_RECORD
    if not record.is_file():
        return
    files = read_json_object(record).get("files")
    if isinstance(files, list):  # of names alone, as packs had at first
        files = {name: None for name in files if isinstance(name, str)}
    there = {path.name: path for path in folder.iterdir() if path.is_file()}
    for name, size in files.items() if isinstance(files, dict) else []:
        if name not in there:
            raise FormatError(
                f"{folder} is a pack without its file {name}: run mlx-flash pack again, with the "
                "same model and options, to write what is missing.",
                record,
            )
        if size is not None and (found := there[name].stat().st_size) != size:
            raise FormatError(
                f"{there[name]} is truncated or changed, it has {found} bytes and should have "
                f"{size}: delete it and run mlx-flash pack again, with the same model and options.",
                there[name],
            )


def _check_index(folder: Path, shards: list[Path]) -> None:
    """Raise FormatError when the index names a shard that is not there."""
    index = folder / _INDEX
    if not index.is_file():
        return
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise FormatError(f"{index} has no weight_map.", index)
    there = {shard.name for shard in shards}
    for name in sorted({str(name) for name in weight_map.values()}):
        if name not in there:
            raise FormatError(
                f"{folder / name} is missing although the index names it; download it again.", index
            )
