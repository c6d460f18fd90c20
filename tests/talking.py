"""A tiny model that reads text: a random checkpoint with the bundled model's tokenizer."""

import dataclasses
import json
import shutil
from pathlib import Path

from families import Family, write_checkpoint

from mlx_flash.engine.find import bundled_model

NUM_EXPERTS, TOP_K = 8, 2


def write_talking_model(qwen: Family, folder: Path, *, dense: bool = False) -> Path:
    """Write a model of the family `qwen`, which has 8 experts, that reads text.

    A `dense` one is of the family without experts.
    """
    config = json.loads((bundled_model() / "config.json").read_text())
    vocabulary = {name: config[name] for name in ("vocab_size", "eos_token_id") if name in config}
    length = {"max_position_embeddings": 4096}
    kind = {"model_type": "qwen3"} if dense else {}
    family = dataclasses.replace(qwen, config=qwen.config | vocabulary | length | kind)
    quantization = {"group_size": 32, "bits": 4}
    write_checkpoint(family, folder, quantization=quantization, dtype="bfloat16")
    for file in bundled_model().glob("*token*"):
        shutil.copy(file, folder)
    return folder
