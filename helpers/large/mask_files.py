"""A saved pruned model with its masks beside it, one bit a weight, and what storing it takes.

A pruned model is saved like any other, dense, by `save_pretrained`. `save_masks` puts the file
`masks.safetensors` into the same folder; `from_pretrained` does not read it, so the folder stays
an ordinary one. `size_report` counts what other ways of storing the same model would take.

All of this is about disk and download only. No general kernel runs such weights faster, and
nothing here makes a model faster or smaller in memory.

The mask file is plain safetensors. Under each weight's name in the checkpoint it holds the bits of
`pack_mask`, uint8 (ceil(weights / 8),). The metadata hold one JSON text under "masks": the format
"version", the "pattern", and for each of the "layers" its "shape" as the checkpoint stores it, the
"crc32" of its bits, and "axis", the dimension along which an N:M pattern's groups run (null if
unstructured). That is 1 for `nn.Linear`, and 0 for GPT-2's `Conv1D`, which checkpoints store
transposed as (d_in, d_out): its mask is transposed like its weight.
"""

from __future__ import annotations

import contextlib
import json
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from helpers.errors import BadMask, BadPattern, CheckpointError, UnsupportedModel
from helpers.large.shards import Checkpoint, reading, tensor_on_disk, write_shard
from helpers.masks import Pattern
from helpers.models import check_weights, find_blocks, find_layers
from helpers.paths import MASK_FILE

VERSION = 1
NO_SPEED = (
    "These sizes are about disk and download only: no general kernel runs such weights faster."
)
_LEVEL = 1  # zlib's fastest: floats of trained weights hardly shrink further at higher levels
_PIECE = 1 << 24  # bytes given to zlib at once, so that its output is never a whole tensor
_WIDEST_INT16 = 1 << 15  # columns that an int16 can count

# --- bits ------------------------------------------------------------------------------------


def pack_mask(keep: Tensor) -> Tensor:
    """One bit a weight: uint8 (ceil(weights / 8),) on the CPU from a boolean mask of any shape.

    The mask is read flat, row by row. Weight i is bit i % 8 of byte i // 8, counted from the
    lowest bit (little bit order); what is left of the last byte is zero. Beyond the result this
    takes no memory for a contiguous mask on the CPU, and a copy (1 byte a weight) for others.

    Raises BadMask if `keep` is not boolean.
    """
    _check_boolean("keep", keep)
    flat = keep.detach().cpu().reshape(-1).numpy()
    return torch.from_numpy(np.packbits(flat, bitorder="little"))


def unpack_mask(bits: Tensor, shape: Iterable[int]) -> Tensor:
    """The boolean mask of `shape` on the CPU whose `pack_mask` is `bits`.

    Raises BadMask if `bits` are not uint8 (ceil(weights / 8),), or are set after the last weight.
    """
    shape = tuple(shape)
    weights = math.prod(shape)
    length = _packed_bytes(weights)
    if not isinstance(bits, Tensor) or (bits.dtype, bits.shape) != (torch.uint8, (length,)):
        raise BadMask(
            f"bits are {_kind(bits)}: a mask of {shape} is uint8 of {(length,)}, as pack_mask "
            "returns it"
        )
    raw = bits.cpu().numpy()
    if weights % 8 and int(raw[-1]) >> weights % 8:
        raise BadMask(f"bits are set after the last weight of {shape}: give that mask's own shape")
    flat = np.unpackbits(raw, count=weights, bitorder="little")
    return torch.from_numpy(flat.view(np.bool_)).reshape(shape)


def _packed_bytes(weights: int) -> int:
    return -(-weights // 8)


def _kind(value: object) -> str:
    """What a value is, for a message: dtype and shape of a tensor, or its type."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of {tuple(value.shape)}"
    return type(value).__name__


def _check_boolean(name: str, keep: object) -> None:
    if not isinstance(keep, Tensor) or keep.dtype != torch.bool:
        raise BadMask(f"{name} is {_kind(keep)}: give a torch.bool mask, True where a weight stays")


def _check_shapes(
    given: Mapping[str, tuple[int, ...]], known: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Raise BadMask unless each given shape is 2-D and that of the weight of the same name."""
    for name, shape in given.items():
        if name not in known:
            raise BadMask(
                f"a mask is given for {name!r}, but {where} has no such weight: "
                "use the names and masks of masks_of(model)"
            )
        if shape != known[name] or len(shape) != 2:
            raise BadMask(
                f"the mask of {name} has shape {shape}, but the weight in {where} has "
                f"{known[name]}: give a 2-D mask in the layout in which the weight is stored"
            )


# --- the mask file ---------------------------------------------------------------------------


def save_masks(
    folder: str | Path, masks: Mapping[str, Tensor], *, pattern: str = "unstructured"
) -> Path:
    """Write `masks.safetensors` into a saved model's folder, whole or not at all; return its path.

    Args: folder, where `save_pretrained` has written the model as safetensors; masks, as
    `masks_of` returns them: boolean, by the checkpoint's names and in its shapes; pattern, "N:M"
    if the model was pruned so, for `size_report`: each group of M then keeps at most N.

    Raises BadMask, BadPattern; CheckpointError if the folder holds no saved model or cannot be
    written.
    """
    return write_masks(folder, masks, masks.__getitem__, pattern)


def write_masks(
    folder: str | Path, names: Iterable[str], mask_of: Callable[[str], Tensor], pattern: str
) -> Path:
    """`save_masks` for masks that are made one at a time: memory holds only the largest of them."""
    checkpoint = Checkpoint(folder)
    names = list(names)
    known, where = checkpoint.shapes(names), f"the checkpoint in {checkpoint.folder}"
    sizes = {name: _packed_bytes(math.prod(shape)) for name, shape in known.items()}
    # of a large model the bits alone could fill the memory
    free = tensor_on_disk(checkpoint.folder, (sum(sizes.values()),), torch.uint8)
    bits: dict[str, Tensor] = {}
    layers: dict[str, dict[str, Any]] = {}
    for name in names:
        keep = mask_of(name)
        _check_boolean(name, keep)
        shape = tuple(keep.shape)
        _check_shapes({name: shape}, known, where)
        bits[name], free = free[: sizes[name]], free[sizes[name] :]
        bits[name].copy_(pack_mask(keep))
        crc32, axis = zlib.crc32(bits[name].numpy()), _group_axis(name, keep, pattern)
        layers[name] = {"shape": shape, "crc32": crc32, "axis": axis}
    description = json.dumps({"version": VERSION, "pattern": pattern, "layers": layers})
    write_shard(checkpoint.folder / MASK_FILE, bits, {"masks": description})
    return checkpoint.folder / MASK_FILE


def _group_axis(name: str, keep: Tensor, pattern: str) -> int | None:
    """The dimension along which the groups of an N:M pattern run, None without groups.

    A mask does not say whether its layer is stored transposed, so both ways are tried.
    """
    n, m = Pattern.parse(pattern).n, Pattern.parse(pattern).m
    if m is None:
        return None
    for axis, rows in ((1, keep), (0, keep.T)):
        if rows.shape[1] % m == 0 and not (rows.unflatten(1, (-1, m)).sum(-1) > n).any():
            return axis
    raise BadMask(
        f"the mask of {name} is not {pattern}: a group of {m} keeps more than {n}; "
        'give the pattern it was pruned with, or "unstructured"'
    )


class _MaskFile:
    """An opened mask file: its pattern, the shape of each mask, and the masks on demand."""

    def __init__(self, file: Any, path: Path) -> None:
        self.file, self.path = file, path
        try:
            description = json.loads((file.metadata() or {})["masks"])
            if description["version"] != VERSION:
                raise CheckpointError(
                    f"{path} has format version {description['version']!r} and only {VERSION} is "
                    "known here: save it again, or read it with a newer version of this package"
                )
            self.pattern, layers = description["pattern"], description["layers"]
            Pattern.parse(self.pattern)
            self.shapes = {name: tuple(map(int, one["shape"])) for name, one in layers.items()}
            self.crc32 = {name: int(one["crc32"]) for name, one in layers.items()}
        except (KeyError, ValueError, TypeError, AttributeError, BadPattern) as error:
            raise CheckpointError(
                f"{path} holds no description of masks, or a damaged one: write it with save_masks"
            ) from error
        if self.shapes.keys() != set(file.keys()):
            raise CheckpointError(f"{path} describes other masks than it holds: save it again")

    def keep(self, name: str) -> Tensor:
        """The mask of one weight. Raises CheckpointError if it is not what was saved."""
        bits = self.file.get_tensor(name)
        try:
            if zlib.crc32(bits.numpy()) == self.crc32[name]:
                return unpack_mask(bits, self.shapes[name])
            reason = "its bits are others"
        except BadMask as error:
            reason = str(error)
        raise CheckpointError(f"{self.path} is damaged at {name} ({reason}): save it again")

    def checked(self, name: str, weight: Tensor) -> Tensor:
        """The mask of one weight, which is zero outside it. Raises BadMask if it is not."""
        keep = self.keep(name)
        stray = int(((weight != 0) & ~keep).sum())
        if stray:
            raise BadMask(
                f"{name} has {stray} weights that are not zero outside its mask: the mask is of "
                "another state of the model; call apply_masks and save again, or save new masks"
            )
        return keep


@contextlib.contextmanager
def _opened(folder: str | Path, checkpoint: Checkpoint | None = None) -> Iterator[_MaskFile]:
    """The mask file of a folder; with its checkpoint, checked to be made for those weights.

    Raises CheckpointError; BadMask unless each mask has a weight of its shape in the checkpoint.
    """
    path = Path(folder).expanduser() / MASK_FILE
    if not path.is_file():
        raise CheckpointError(
            f"folder {path.parent} holds no {MASK_FILE}: write it with "
            "save_masks(folder, masks_of(model))"
        )
    with reading(path) as file:
        masks = _MaskFile(file, path)
        if checkpoint:
            shapes, where = masks.shapes, f"the checkpoint in {checkpoint.folder}"
            _check_shapes(shapes, checkpoint.shapes(shapes), where)
        yield masks


def load_masks(folder: str | Path, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """The boolean masks of a saved model by weight name, in the checkpoint's shapes, on the CPU.

    With `names` only these are read.
    Raises CheckpointError if the file is missing, cut off, damaged or of another format version;
    BadMask if one of `names` has no mask.
    """
    with _opened(folder) as masks:
        wanted = list(masks.shapes if names is None else names)
        absent = [name for name in wanted if name not in masks.shapes]
        if absent:
            raise BadMask(
                f"{masks.path} holds no mask of {absent[0]!r}: it has {len(masks.shapes)}, "
                f"first {next(iter(masks.shapes), None)!r}; leave names out to read them all"
            )
        return {name: masks.keep(name) for name in wanted}


def check_masks(folder: str | Path) -> None:
    """Check that a saved model is zero wherever its mask file says so, one tensor at a time.

    A kept weight may be zero. Raises BadMask, naming the weight and the count, if a weight
    outside its mask is not zero, is missing or has another shape; CheckpointError as `load_masks`.
    """
    checkpoint = Checkpoint(folder)
    with _opened(folder, checkpoint) as masks:
        for name, weight in checkpoint.tensors(masks.shapes):
            masks.checked(name, weight)
            del weight  # else it would live on while the next is read


# --- a model in memory -----------------------------------------------------------------------


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    """Where the weights of the blocks' linear layers are not zero, by name in the state dict.

    Each mask is boolean, on its weight's device and in the layout in which the weight is stored:
    (d_out, d_in) for `nn.Linear`, but (d_in, d_out) for GPT-2's `Conv1D`. A kept weight that
    happens to be zero counts as pruned. The masks of a dense model are all True.

    Raises UnsupportedModel; NonFinite if a weight holds NaN or infinity.
    """
    names = {module: name for name, module in model.named_modules()}
    masks = {}
    for index, block in enumerate(find_blocks(model)):
        for layer in find_layers(block, f"block {index}").values():
            name = f"{names[layer]}.weight"
            check_weights(name, layer)
            masks[name] = layer.weight.detach() != 0
    return masks


def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set to zero, in place, every weight outside its mask, for example after fine-tuning.

    Args: masks, boolean, by the model's parameter names and in their shapes, as from `masks_of`
    or `load_masks`; weights without a mask stay as they are.
    Raises, before anything changes, BadMask if a mask is not boolean, has a name that the model
    does not have or another shape; UnsupportedModel if a weight has no values (meta device).
    """
    known = dict(model.named_parameters(remove_duplicate=False))
    for name, keep in masks.items():
        _check_boolean(name, keep)
    shapes = {name: tuple(keep.shape) for name, keep in masks.items()}
    _check_shapes(shapes, {n: tuple(p.shape) for n, p in known.items()}, type(model).__name__)
    for name in masks:
        if known[name].is_meta:
            raise UnsupportedModel(f"{name} has no values: load the model without offloading")
    with torch.no_grad():
        for name, keep in masks.items():
            # not a product: NaN times zero is NaN
            known[name].masked_fill_(~keep.to(known[name].device), 0)


# --- sizes -----------------------------------------------------------------------------------


def size_report(folder: str | Path) -> pd.DataFrame:
    """What a saved pruned model with its mask file takes on disk, stored in different ways.

    It PROMISES NO SPEED: no general kernel runs such weights faster; these sizes are about disk
    and download only. A row for each way of storing, with its "bytes" and their "share" of the
    dense ones; the first two are sizes of files, the others count the tensors' data without
    headers. Weights without a mask are always stored dense, and values keep their dtype.

    - "files", "mask file": the weights' files as they are, and masks.safetensors;
    - "dense": all tensors; "dense, zlib": these in one zlib stream at level 1;
    - "mask + values": one bit a weight, and the kept values;
    - "values + index", for an N:M pattern only: N values of each group and their positions in it,
      ceil(log2 M) bits each;
    - "CSR, int16", "CSR, int32": kept values, a column index each, and an int32 start of each row
      (a weight of more than 32768 columns has int32 indices in both).

    `attrs` of the table holds "pattern", "weights" (those with a mask), "kept" and "sparsity" of
    these, and a "note". One tensor is in memory at a time; compressing takes most of the time.
    Raises CheckpointError, and BadMask as `check_masks`.
    """
    checkpoint = Checkpoint(folder)
    ways = ("dense", "mask + values", "values + index", "CSR, int16", "CSR, int32")
    sizes: Counter[str] = Counter(dict.fromkeys(ways, 0))
    weights = kept = zipped = 0
    squeeze = zlib.compressobj(_LEVEL)
    with _opened(folder, checkpoint) as masks:
        pattern = Pattern.parse(masks.pattern)
        for name, tensor in checkpoint.tensors():
            data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
            for start in range(0, len(data), _PIECE):
                zipped += len(squeeze.compress(data[start : start + _PIECE]))
            added = dict.fromkeys(ways, tensor.nbytes)
            if name in masks.shapes:
                keep = masks.checked(name, tensor)
                weights, kept = weights + keep.numel(), kept + int(keep.sum())
                added |= _sparse_sizes(keep, tensor.itemsize, pattern)
            sizes.update(added)
            del tensor, data  # else they would live on while the next is read
        stored = sum(path.stat().st_size for path in checkpoint.paths)
        files = {"files": stored, "mask file": masks.path.stat().st_size}
    if not pattern.grouped:
        del sizes["values + index"]
    zipped += len(squeeze.flush())
    table = pd.DataFrame({"bytes": {**files, **sizes, "dense, zlib": zipped}})
    table["share"] = table["bytes"] / sizes["dense"]
    sparsity = 1 - kept / weights if weights else 0.0
    table.attrs = {"pattern": masks.pattern, "weights": weights, "kept": kept}
    table.attrs |= {"sparsity": sparsity, "note": NO_SPEED}
    return table


def _sparse_sizes(keep: Tensor, width: int, pattern: Pattern) -> dict[str, int]:
    """Bytes of one layer in the ways that use its mask; `width` is the bytes of a value."""
    weights, kept, (rows, columns) = keep.numel(), int(keep.sum()), keep.shape
    starts = 4 * (rows + 1)
    short = 2 if columns <= _WIDEST_INT16 else 4
    slots, bits = 0, 0
    if pattern.grouped:
        # a group that keeps fewer than N still fills N slots, so that all groups are alike
        slots, bits = weights // pattern.m * pattern.n, (pattern.m - 1).bit_length()
    return {
        "mask + values": _packed_bytes(weights) + kept * width,
        "values + index": slots * width + _packed_bytes(slots * bits),
        "CSR, int16": kept * (width + short) + starts,
        "CSR, int32": kept * (width + 4) + starts,
    }
