"""A matrix, or a stack of them, as the kernels see it: a format, a size and addresses."""

from collections.abc import Mapping

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..addresses import address_of
from ..reference import Quantization
from .formats import RowFormat, row_format
from .phases import BIAS_KINDS, ROWS, Preparation, Product, prepare, product
from .pool import Phase, start_of

_FLOATS = {mx.float32: "f32", mx.float16: "f16", mx.bfloat16: "bf16"}
_SMALL_FLOATS = {"mxfp4": "fp4-e8m0", "nvfp4": "fp4-e4m3", "mxfp8": "fp8-e8m0"}

_CHUNK_BYTES = 64 * 1024  # weights of one chunk: they stay in a core's cache for all its inputs
_MIN_CHUNKS = 8


def format_name(tensors: Mapping[str, mx.array], quantization: Quantization | None) -> str | None:
    """Return the format of a matrix or stack `[..., N, K]`; None when no kernel reads it.

    Reads shapes and types only.
    """
    weight = tensors["weight"]
    num_rows, width = weight.shape[-2], weight.shape[-1]
    if quantization is None:
        name, step = f"{_FLOATS.get(weight.dtype)}--0", 16
        if weight.dtype not in _FLOATS:
            return None
    elif "global_scale" in tensors or weight.dtype != mx.uint32:
        return None
    else:
        width = width * 32 // quantization.bits
        if quantization.mode == "affine":
            scale = _FLOATS.get(tensors["scales"].dtype)
            if scale is None or tensors["biases"].dtype != tensors["scales"].dtype:
                return None
            name = f"q{quantization.bits}-{scale}-{quantization.group_size}"
        elif quantization.mode in _SMALL_FLOATS:
            name = f"{_SMALL_FLOATS[quantization.mode]}-{quantization.group_size}"
        else:
            return None
        step = quantization.group_size
    if "bias" in tensors and tensors["bias"].dtype not in _FLOATS:
        return None
    return name if num_rows % ROWS == 0 and width % step == 0 and width > 0 else None


class Matrix:
    """`[N, K]`, or a stack of them `[S, N, K]`, in memory that is read in place.

    It keeps the memory of its arrays, which must be contiguous. What is in it may change.
    """

    def __init__(self, tensors: Mapping[str, mx.array], quantization: Quantization | None) -> None:
        """Look at `weight` and what there is of `scales`, `biases` and `bias`."""
        name = format_name(tensors, quantization)
        assert name is not None, "a matrix that no kernel reads"
        self.format: RowFormat = row_format(name)
        # arrays of its own over the same memory: the caller's may be changed to lie elsewhere
        tensors = {name: array[...] for name, array in tensors.items()}
        mx.eval(tensors)
        self._tensors = tensors
        weight = tensors["weight"]
        bits = quantization.bits if quantization else 8 * weight.itemsize
        self.num_rows = int(weight.shape[-2])
        self.width = int(weight.shape[-1]) * 8 * weight.itemsize // bits
        num_blocks, rest = divmod(self.width, self.format.block)
        row_bytes = int(weight.shape[-1]) * weight.itemsize
        task = np.zeros(len(Product), np.int64)
        task[Product.WEIGHT] = address_of(weight)
        task[Product.WEIGHT_STRIDE] = row_bytes
        task[Product.WEIGHT_SLOT_STRIDE] = row_bytes * self.num_rows
        if self.format.scale:
            scales = tensors["scales"]
            scale_bytes = int(scales.shape[-1]) * scales.itemsize
            task[Product.SCALE] = address_of(scales)
            task[Product.SCALE_STRIDE] = scale_bytes
            task[Product.SCALE_SLOT_STRIDE] = scale_bytes * self.num_rows
        if self.format.offset:
            task[Product.OFFSET] = address_of(tensors["biases"])
        task[Product.NUM_BLOCKS] = num_blocks
        task[Product.TAIL_LANES] = rest // self.format.tail_step
        task[Product.NUM_ROWS] = self.num_rows
        wanted = min(_CHUNK_BYTES // row_bytes, self.num_rows // _MIN_CHUNKS)
        chunk_rows = max(ROWS, wanted // ROWS * ROWS)
        self.chunks = -(-self.num_rows // chunk_rows)
        task[Product.CHUNK_ROWS] = chunk_rows
        task[Product.CHUNKS_PER_GROUP] = self.chunks
        if "bias" in tensors:
            bias = tensors["bias"]
            task[Product.BIAS] = address_of(bias)
            task[Product.BIAS_SLOT_STRIDE] = self.num_rows * bias.itemsize
            task[Product.BIAS_KIND] = BIAS_KINDS[_FLOATS[bias.dtype]]
        self._task = task
        self._order = self.format.order
        self._preparation = np.zeros(len(Preparation), np.int64)
        self._preparation[Preparation.WIDTH] = self.width
        self._preparation[Preparation.BLOCK] = self.format.block
        self._preparation[Preparation.ORDER] = start_of(self._order)
        self._preparation[Preparation.GROUP] = self.format.group if self.format.offset else 0
        blocks = num_blocks + (1 if rest else 0)
        groups = self.width // self.format.group if self.format.offset else 0
        self.input_width = blocks * self.format.block + -(-groups // 16) * 16
        self.row_bytes = row_bytes

    def __deepcopy__(self, memo: dict[int, object]) -> "Matrix":
        """Return itself: it describes memory that others own."""
        return self

    def prepared(self, num_inputs: int) -> npt.NDArray[np.float32]:
        """Return room for inputs in this format's order, with the sums of their groups behind."""
        return np.zeros((num_inputs, self.input_width), np.float32)

    def preparation(
        self, source: npt.NDArray[np.float32], target: npt.NDArray[np.float32]
    ) -> Phase:
        """Return the phase that puts the rows `[n, K]` of `source` into `target`."""
        task = self._preparation.copy()
        task[Preparation.SOURCE] = start_of(source)
        task[Preparation.SOURCE_STRIDE] = source.strides[0]
        task[Preparation.TARGET] = start_of(target)
        task[Preparation.TARGET_STRIDE] = target.strides[0]
        return Phase(prepare(), task, len(source))

    def product(
        self,
        groups: npt.NDArray[np.int64],
        inputs: npt.NDArray[np.int64],
        outputs: npt.NDArray[np.int64],
    ) -> Phase:
        """Return the phase that computes, for each of `groups`, one matrix times its inputs.

        A group is (slot, first input, number of inputs). `inputs` and `outputs` are addresses of
        prepared inputs and of `[N]` float32 results; both tables must outlive the phase.
        """
        task = self._task.copy()
        task[Product.GROUPS] = start_of(groups)
        task[Product.INPUTS] = start_of(inputs)
        task[Product.OUTPUTS] = start_of(outputs)
        return Phase(product(self.format.name), task, len(groups) * self.chunks)


def rows_of(array: npt.NDArray[np.float32], picked: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the addresses of the rows `picked` of a two-dimensional array."""
    addresses: npt.NDArray[np.int64] = picked * array.strides[0] + start_of(array)
    return addresses
