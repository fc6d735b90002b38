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
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from helpers.errors import (
    BadParameter,
    FileError,
    UnsupportedModel,
    described,
    first_line,
)
from helpers.large.shards import (
    DAMAGED,
    Checkpoint,
    folder_path,
    reading,
    tensor_on_disk,
    write_shard,
)
from helpers.masks import Pattern
from helpers.models import check_weights, find_blocks, find_layers
from helpers.paths import MASK_FILE

VERSION = 1
Shapes = Mapping[str, tuple[int, ...]]
NO_SPEED = (
    "These sizes are about disk and download only: no general kernel runs such weights faster."
)


def pack_mask(keep: Tensor) -> Tensor:
    """One bit a weight: uint8 (ceil(weights / 8),) on the CPU from a boolean mask of any shape.

    The mask is read flat, row by row. Weight i is bit i % 8 of byte i // 8, counted from the
    lowest bit (little bit order); what is left of the last byte is zero.

    Raises BadParameter if `keep` is not boolean.
    """
    _check_boolean("keep", keep)
    flat = keep.detach().cpu().reshape(-1).numpy()
    return torch.from_numpy(np.packbits(flat, bitorder="little"))


def unpack_mask(bits: Tensor, shape: Iterable[int]) -> Tensor:
    """The boolean mask of `shape` on the CPU whose `pack_mask` is `bits`.

    Raises BadParameter if `bits` are not uint8 (ceil(weights / 8),), or set after the last.
    """
    shape = tuple(shape)
    weights = math.prod(shape)
    size = (_packed_bytes(weights),)
    if not isinstance(bits, Tensor) or bits.dtype != torch.uint8 or bits.shape != size:
        raise BadParameter(
            f"the packed mask {described(bits)}: a mask of {shape} has dtype torch.uint8 and shape "
            f"{size}, as pack_mask returns it"
        )
    raw = bits.cpu().numpy()
    if weights % 8 and int(raw[-1]) >> weights % 8:
        raise BadParameter(
            f"bits are set beyond the last weight of {shape}: give the mask's own shape"
        )
    flat = np.unpackbits(raw, count=weights, bitorder="little")
    return torch.from_numpy(flat.view(np.bool_)).reshape(shape)


def _packed_bytes(weights: int) -> int:
    return -(-weights // 8)


def _check_boolean(name: str, keep: Tensor) -> None:
    found = getattr(keep, "dtype", type(keep).__name__)
    if found != torch.bool:
        raise BadParameter(f"{name} is {found}: give a torch.bool mask, True where a weight stays")


def _check_shape(name: str, shape: tuple[int, ...], known: Shapes, where: object) -> None:
    """Raise BadParameter unless a mask is 2-D and has the shape of the weight of its name."""
    if shape != known.get(name) or len(shape) != 2:
        raise BadParameter(
            f"the mask of {name} has shape {shape}, but the weight in {where} has "
            f"{known.get(name, 'no such name')}: give the 2-D masks of masks_of(model), "
            "by the names and in the layout in which the weights are stored"
        )


# --- the mask file ---------------------------------------------------------------------------


def save_masks(
    folder: str | Path, masks: Mapping[str, Tensor], *, pattern: str = "unstructured"
) -> Path:
    """Write `masks.safetensors` into a saved model's folder, whole or not at all; return its path.

    Args: folder, where `save_pretrained` has written the model as safetensors; masks, as
    `masks_of` returns them: boolean, by the checkpoint's names and in its shapes; pattern, "N:M"
    if the model was pruned so, for `size_report`: each group of M then keeps at most N.

    Raises BadParameter; FileError if the folder holds no saved model or cannot be
    written.
    """
    return write_masks(folder, list(masks), masks.values(), pattern)


def write_masks(
    folder: str | Path, names: list[str], masks: Iterable[Tensor], pattern: str
) -> Path:
    """`save_masks` for masks that are made one at a time: memory holds only the largest of them."""
    checkpoint, groups = Checkpoint(folder), Pattern.parse(pattern)
    known = checkpoint.shapes(names)
    sizes = {name: _packed_bytes(math.prod(shape)) for name, shape in known.items()}
    # of a large model the bits alone could fill the memory
    free = tensor_on_disk(checkpoint.folder, (sum(sizes.values()),), torch.uint8)
    bits: dict[str, Tensor] = {}
    layers: dict[str, dict[str, Any]] = {}
    for name, keep in zip(names, masks, strict=True):
        _check_boolean(name, keep)
        shape = tuple(keep.shape)
        _check_shape(name, shape, known, checkpoint.folder)
        bits[name], free = free[: sizes[name]], free[sizes[name] :]
        bits[name].copy_(pack_mask(keep))
        crc32, axis = zlib.crc32(bits[name].numpy()), _group_axis(name, keep, groups)
        layers[name] = {"shape": shape, "crc32": crc32, "axis": axis}
    description = json.dumps({"version": VERSION, "pattern": str(groups), "layers": layers})
    write_shard(checkpoint.folder / MASK_FILE, bits, {"masks": description})
    return checkpoint.folder / MASK_FILE


def _group_axis(name: str, keep: Tensor, pattern: Pattern) -> int | None:
    """The dimension along which the groups of an N:M pattern run, None without groups.

    A mask does not say whether its layer is stored transposed, so both ways are tried.
    """
    if not pattern.grouped:
        return None
    n, m = pattern.n, pattern.m
    for axis, rows in ((1, keep), (0, keep.T)):
        if rows.shape[1] % m == 0 and not (rows.unflatten(1, (-1, m)).sum(-1) > n).any():
            return axis
    raise BadParameter(
        f"the mask of {name} is not {pattern}: a group of {m} keeps more than {n}; "
        'give the pattern it was pruned with, or "unstructured"'
    )


@contextlib.contextmanager
def _opened(folder: str | Path) -> Iterator[tuple[Pattern, Shapes, Callable[[str], Tensor]]]:
    """The mask file of a folder: its pattern, the masks' shapes, and a function that reads one.

    Raises FileError; so does the function, for a mask that is not what was saved.
    """
    path = folder_path(folder) / MASK_FILE
    with reading(path) as file:
        try:
            description = json.loads((file.metadata() or {})["masks"])
            if description["version"] != VERSION:
                raise ValueError(f"format version {description['version']!r}, not {VERSION}")
            pattern, layers = Pattern.parse(description["pattern"]), description["layers"]
            shapes = {name: tuple(map(int, layer["shape"])) for name, layer in layers.items()}
            crc32 = {name: int(layer["crc32"]) for name, layer in layers.items()}
            if shapes.keys() != set(file.keys()):
                raise ValueError("its description names other masks than it holds")
        except (*DAMAGED, BadParameter) as error:
            raise FileError(
                f"{path} holds no description of masks that can be used here "
                f"({first_line(error)}): write it with save_masks"
            ) from error

        def read(name: str) -> Tensor:
            bits = file.get_tensor(name)
            try:
                if zlib.crc32(bits.numpy()) != crc32[name]:
                    raise BadParameter("its bits have changed")
                return unpack_mask(bits, shapes[name])
            except BadParameter as error:
                raise FileError(f"{path} is damaged at {name} ({error}): save it again") from error

        yield pattern, shapes, read


def load_masks(folder: str | Path) -> dict[str, Tensor]:
    """The boolean masks of a saved model by weight name, in the checkpoint's shapes, on the CPU.

    Raises FileError if the file is missing, cut off, damaged or of another format version.
    """
    with _opened(folder) as (_, shapes, read):
        return {name: read(name) for name in shapes}


def check_masks(folder: str | Path) -> None:
    """Check that a saved model is zero wherever its mask file says so, one tensor at a time.

    A kept weight may be zero. Raises BadParameter, naming the weight and the count, if a weight
    outside its mask is not zero, is missing or has another shape; FileError as `load_masks`.
    """
    size_report(folder)  # which reads every weight beside its mask


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
    Raises, before anything changes, BadParameter if a mask is not boolean, has a name that the
    model does not have or another shape; UnsupportedModel if a weight has no values (meta device).
    """
    known = dict(model.named_parameters(remove_duplicate=False))
    shapes = {name: tuple(parameter.shape) for name, parameter in known.items()}
    for name, keep in masks.items():
        _check_boolean(name, keep)
        _check_shape(name, tuple(keep.shape), shapes, type(model).__name__)
        if known[name].is_meta:
            raise UnsupportedModel(f"{name} has no values: load the model without offloading")
    with torch.no_grad():
        for name, keep in masks.items():
            # not a product: NaN times zero is NaN
            known[name].masked_fill_(~keep.to(known[name].device), 0)


# --- sizes -----------------------------------------------------------------------------------


def size_report(folder: str | Path) -> pd.DataFrame:
    """What a saved pruned model with its mask file takes on disk, stored in different ways.

    A row for each way of storing, with its "bytes" and their "share" of the dense ones; the first
    two are sizes of files, the others count the tensors' data without headers. Weights without a
    mask are always stored dense, and values keep their dtype.

    - "files", "mask file": the weights' files as they are, and masks.safetensors;
    - "dense": all tensors;
    - "mask + values": one bit a weight, and the kept values;
    - "values + index", for an N:M pattern only: N values of each group and their positions in it,
      ceil(log2 M) bits each.

    `attrs` of the table holds "pattern", "weights" (those with a mask), "kept" and "sparsity" of
    these, and a "note": the sizes promise no speed. One tensor is in memory at a time.
    Raises FileError, and BadParameter as `check_masks`.
    """
    checkpoint, weights, kept = Checkpoint(folder), 0, 0
    dense = sum(tensor.nbytes for _, tensor in checkpoint.tensors())
    with_mask = with_index = dense
    with _opened(folder) as (pattern, shapes, read):
        known = checkpoint.shapes(shapes)
        for name, shape in shapes.items():
            _check_shape(name, shape, known, checkpoint.folder)
        for name, tensor in checkpoint.tensors(shapes):
            keep = read(name)
            here, stray = int(keep.sum()), int(((tensor != 0) & ~keep).sum())
            if stray:
                raise BadParameter(
                    f"{name} has {stray} weights outside its mask that are not zero, so model and "
                    "mask do not belong together: call apply_masks and save the model again, or "
                    "save new masks"
                )
            weights, kept = weights + tensor.numel(), kept + here
            with_mask += _packed_bytes(tensor.numel()) + here * tensor.itemsize - tensor.nbytes
            if pattern.grouped:
                # a group that keeps fewer than N still fills N slots, so that all groups are alike
                slots = tensor.numel() // pattern.m * pattern.n
                bits = slots * (pattern.m - 1).bit_length()
                with_index += slots * tensor.itemsize + _packed_bytes(bits) - tensor.nbytes
    sizes = {
        "files": sum(path.stat().st_size for path in checkpoint.paths),
        "mask file": (checkpoint.folder / MASK_FILE).stat().st_size,
        "dense": dense,
        "mask + values": with_mask,
    }
    if pattern.grouped:
        sizes["values + index"] = with_index
    table = pd.DataFrame({"bytes": sizes})
    table["share"] = table["bytes"] / dense
    table.attrs = {"pattern": str(pattern), "weights": weights, "kept": kept}
    table.attrs |= {"sparsity": 1 - kept / weights if weights else 0.0, "note": NO_SPEED}
    return table
