"""Makes a model of real size with real routing: the same experts, padded with zeros."""

import contextlib
import errno
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import OptionError, PackError, UnsupportedModelError
from ..formats.checkpoint import Checkpoint
from ..formats.layout import ExpertLayout
from ..formats.safetensors import DTYPE_BYTES, NewTensor, TensorEntry, header_of
from ..planner.memory import gigabytes
from ..streaming import adapter
from ..streaming.install import survey

_WIDTH = "moe_intermediate_size"  # the key of the config that is changed
_SHARD_BYTES = 4 * 10**9
_MULTIPLE = 512  # of the new width: every quantization group, and whole blocks of the kernels
_DOWN = ("down_proj", "fc2")


@dataclass(frozen=True)
class _Widened:
    """A tensor of the new model: `source`, its `axis` (None: none) widened from `old` to `new`."""

    source: TensorEntry
    axis: int | None
    old: int
    new: int

    @property
    def tensor(self) -> NewTensor:
        shape = list(self.source.shape)
        if self.axis is not None:
            shape[self.axis] = shape[self.axis] * self.new // self.old
        return NewTensor(self.source.name, self.source.dtype, tuple(shape))

    def pieces(self) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield the bytes of the new tensor, expert by expert."""
        shape, item_bytes = self.source.shape, DTYPE_BYTES[self.source.dtype]
        data = np.memmap(self.source.path, np.uint8, "r", self.source.offset, self.source.nbytes)
        if self.axis is None:
            yield data
            return
        old = data.reshape(*shape, item_bytes)
        for expert in old:
            wide = np.zeros((*self.tensor.shape[1:], item_bytes), np.uint8)
            wide[tuple(slice(length) for length in expert.shape)] = expert
            yield wide


def inflate(
    source: Path, target: Path, expert_bytes: int, on_bytes: Callable[[int, int], None]
) -> int:
    """Write the model in `source` to the folder `target`, each expert of about `expert_bytes`.

    The experts' inner width grows; what is new is zero, so that the model routes and answers as
    before, and reads and computes as one whose experts are that large. Needs memory for one expert
    and never more. `on_bytes(done, of)` is called as it writes. Returns the bytes of one expert.
    Whatever ends it early leaves nothing behind.

    Raises:
        OptionError: `expert_bytes` is less than an expert has, `target` is not empty or a file, or
            `source` is packed.
        PackError: the disk has no room, or cannot be written.
        UnsupportedModelError: the config does not name the experts' width.
    """
    checkpoint = Checkpoint.open(source)
    if checkpoint.packed:
        raise OptionError(f"{source} is packed: give the model that it was made of.")
    old = checkpoint.config.get(_WIDTH)
    if type(old) is not int:
        raise UnsupportedModelError(f"the config of {source} has no {_WIDTH}: cannot inflate it.")
    if target.exists() and not target.is_dir():
        raise OptionError(f"{target} is a file: give a folder.")
    if target.exists() and any(target.iterdir()):
        raise OptionError(f"{target} is not empty: give a new folder.")
    sites = survey(adapter.load_lazily(source).model, checkpoint)
    if not sites:
        raise UnsupportedModelError("the model has no experts to inflate.")
    new = _new_width(sites[0].layout, old, expert_bytes)
    axes = {
        f"{site.path}.{tensor.name}": _axis(tensor.name, len(tensor.shape) + 1)
        for site in sites
        for tensor in site.layout.tensors
    }
    widened = [
        _Widened(entry, axes.get(name), old, new) for name, entry in checkpoint.tensors.items()
    ]
    with _all_or_nothing(target):
        _check_room(target, sum(item.tensor.nbytes for item in widened))
        _write_shards(target, widened, on_bytes)
        for file in source.iterdir():
            if file.is_file() and not file.name.startswith("model"):
                shutil.copyfile(file, target / file.name)
        config = {**checkpoint.config, _WIDTH: new}
        (target / "config.json").write_text(json.dumps(config, indent=4))
    return sites[0].layout.expert_bytes * new // old


@contextlib.contextmanager
def _all_or_nothing(target: Path) -> Iterator[None]:
    """Make a folder to write; empty it again, or remove it where it is new, unless all went well.

    Raises:
        PackError: the disk refuses.
    """
    is_new = not target.exists()
    try:
        try:
            target.mkdir(parents=True, exist_ok=True)
            yield
        except BaseException:
            for file in target.iterdir() if target.is_dir() else []:
                file.unlink()
            if is_new and target.is_dir():
                target.rmdir()
            raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = ": make room, or ask for smaller experts" if full else ""
        raise PackError(f"cannot write {target}: {error.strerror or error}{advice}.") from error


def _check_room(target: Path, nbytes: int) -> None:
    """Raise PackError when the disk has no room for so many bytes."""
    free = shutil.disk_usage(target).free
    if free < nbytes:
        raise PackError(
            f"the model would take {gigabytes(nbytes)} and the disk of {target} has "
            f"{gigabytes(free)} free: ask for smaller experts, or give a folder elsewhere."
        )


def _new_width(layout: ExpertLayout, old: int, expert_bytes: int) -> int:
    wanted = old * expert_bytes / layout.expert_bytes
    new = max(1, round(wanted / _MULTIPLE)) * _MULTIPLE
    if new < old or expert_bytes < layout.expert_bytes:
        raise OptionError(
            f"an expert has {layout.expert_bytes} bytes already: ask for more than that."
        )
    return new


def _axis(name: str, num_axes: int) -> int | None:
    """Return the axis of a stacked expert tensor that has the inner width, None if it has not."""
    projection, _, tensor = name.rpartition(".")
    if projection not in _DOWN:
        return 1
    return None if tensor == "bias" else num_axes - 1


def _write_shards(
    target: Path, widened: list[_Widened], on_bytes: Callable[[int, int], None]
) -> None:
    """Write the tensors into as many files as they need, and the index."""
    shards: list[list[_Widened]] = [[]]
    for item in widened:
        if sum(other.tensor.nbytes for other in shards[-1]) + item.tensor.nbytes > _SHARD_BYTES:
            shards.append([])
        shards[-1].append(item)
    total, done = sum(item.tensor.nbytes for item in widened), 0
    weight_map: Mapping[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = target / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map = {**weight_map, **{item.tensor.name: file.name for item in shard}}
        with file.open("wb") as out:
            out.write(header_of([item.tensor for item in shard], {"format": "mlx"}, 16))
            for item in shard:
                for piece in item.pieces():
                    out.write(piece.data)
                    done += piece.nbytes
                    on_bytes(done, total)
    index: dict[str, Any] = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=4))
