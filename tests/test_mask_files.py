"""Masks of one bit a weight beside a saved model: bits and bytes counted by hand, and faults."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import families as fam
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays
from hypothesis.strategies import booleans
from safetensors.torch import load_file, save_file
from torch import Tensor

from helpers import (
    apply_masks,
    check_masks,
    load_masks,
    masks_of,
    model_identity,
    pack_mask,
    prune_model,
    save_masks,
    size_report,
    unpack_mask,
)
from helpers.errors import BadParameter, FileError, UnsupportedModel

Q0 = "model.layers.0.self_attn.q_proj.weight"
DOWN1 = "model.layers.1.mlp.down_proj.weight"


# ---------------------------------------------------------------- folders to test on


def save_pruned(folder: Path, family: str, pattern: str, shard: str, **prune: float) -> Path:
    """A saved model pruned by magnitude, with its masks."""
    model = fam.build(family)
    prune_model(model, method="magnitude", pattern=pattern, **prune)
    model.save_pretrained(folder, max_shard_size=shard)
    save_masks(folder, masks_of(model), pattern=pattern)
    return folder


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama at 50 %, in one file, with its masks. Not to be changed."""
    folder = tmp_path_factory.mktemp("half")
    return save_pruned(folder, "llama", "unstructured", "1GB", sparsity=0.5)


@pytest.fixture
def spoilt(half: Path, tmp_path: Path) -> Path:
    """A copy of `half` to be damaged."""
    return Path(shutil.copytree(half, tmp_path / "copy"))


def stored(folder: Path) -> dict[str, Tensor]:
    """All weights of a saved model, read without the module under test."""
    found: dict[str, Tensor] = {}
    for path in folder.glob("model*.safetensors"):
        found |= load_file(path)
    return found


def store(folder: Path, weights: dict[str, Tensor]) -> None:
    """Save weights as a model of one file."""
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def mask_file(folder: Path) -> tuple[dict, dict]:
    """The mask file's tensors and its description, read without the module under test."""
    path = folder / "masks.safetensors"
    raw = path.read_bytes()  # 8 bytes of header length, then the header
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return load_file(path), json.loads(header["__metadata__"]["masks"])


# ---------------------------------------------------------------- bits


@given(arrays(bool, array_shapes(max_dims=3, max_side=33, min_side=0)), booleans())
def test_bits_are_exact(array: np.ndarray, turned: bool) -> None:
    keep = torch.from_numpy(array)
    keep = keep.T if turned and keep.ndim == 2 else keep  # a view is packed as it reads
    # bit i of a number that is summed up by hand
    number = sum(1 << i for i, bit in enumerate(keep.flatten().tolist()) if bit)
    expected = number.to_bytes(-(-keep.numel() // 8), "little")
    assert bytes(pack_mask(keep).tolist()) == expected
    back = unpack_mask(pack_mask(keep), keep.shape)
    assert back.dtype == torch.bool and torch.equal(back, keep)


def test_what_is_no_mask_or_no_bits_of_that_shape(one_line_error) -> None:
    for keep in (torch.ones(2, 2), np.ones((2, 2), dtype=bool), None):
        with one_line_error(BadParameter, "torch.bool"):
            pack_mask(keep)
    # a byte too few, too many, another dtype, the fourth bit of three, no tensor
    byte = torch.zeros(1, dtype=torch.uint8)
    wrong = [(byte, (3, 3)), (byte.repeat(2), (2, 4)), (byte.to(torch.int8), (2, 4))]
    for bits, shape in [*wrong, (byte + 8, (1, 3)), (b"1", (2, 4))]:
        with one_line_error(BadParameter, str(shape)):
            unpack_mask(bits, shape)


# ---------------------------------------------------------------- saving and loading


def test_masks_come_back_and_the_file_is_one_bit_a_weight(half: Path) -> None:
    weights, masks = stored(half), load_masks(half)
    check_masks(half)
    assert masks.keys() == {f"{name}.weight" for name in fam.pruned_names("llama")}
    for name, keep in masks.items():
        assert torch.equal(keep, weights[name] != 0)
        assert int(keep.sum()) == keep.numel() // 2

    tensors, found = mask_file(half)
    assert (found["version"], found["pattern"]) == (1, "unstructured")
    bits = np.packbits((weights[Q0] != 0).numpy().ravel(), bitorder="little")
    assert tensors[Q0].tolist() == bits.tolist()
    assert found["layers"][Q0] == {"shape": [32, 32], "crc32": zlib.crc32(bits), "axis": None}
    pruned = sum(keep.numel() for keep in masks.values())
    assert sum(bits.numel() for bits in tensors.values()) == pruned // 8


def test_a_model_with_masks_loads_as_one_without(tmp_path: Path) -> None:
    sharded = save_pruned(tmp_path / "sharded", "llama", "2:4", "30KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 2
    bare = Path(shutil.copytree(sharded, tmp_path / "bare"))
    (bare / "masks.safetensors").unlink()
    one, two = (type(fam.build("llama")).from_pretrained(folder) for folder in (sharded, bare))
    assert one.state_dict().keys() == two.state_dict().keys()
    assert model_identity(one)["sha256"] == model_identity(two)["sha256"]
    assert fam.changed(one, fam.snapshot(two)) == set()
    masks = load_masks(sharded)
    assert len(masks) == 14 and all((m.view(-1, 4).sum(1) == 2).all() for m in masks.values())
    check_masks(sharded)


def test_masks_are_in_the_layout_of_the_checkpoint(tmp_path: Path) -> None:
    # GPT-2 stores c_attn as (d_in, d_out) = (32, 96); groups of four run down its columns
    folder = save_pruned(tmp_path, "gpt2", "2:4", "1GB")
    name = "transformer.h.1.attn.c_attn.weight"
    keep = load_masks(folder)[name]
    assert keep.shape == (32, 96) and torch.equal(keep, stored(folder)[name] != 0)
    assert (keep.reshape(8, 4, 96).sum(1) == 2).all()
    assert not (keep.reshape(32, 24, 4).sum(2) == 2).all()
    check_masks(folder)
    assert "values + index" in size_report(folder).index


def test_masks_that_do_not_fit_are_not_saved(half: Path, one_line_error) -> None:
    good, before = load_masks(half), (half / "masks.safetensors").read_bytes()
    empty = torch.zeros(32, 32, dtype=torch.bool)
    cases = [
        (good | {"model.layers.7.q": good[Q0]}, None, ("model.layers.7.q", "no such name")),
        (good | {DOWN1: good[DOWN1].T}, None, (DOWN1, "(64, 32)", "(32, 64)")),
        (good | {Q0: good[Q0].float()}, None, (Q0, "float32")),
        ({"model.norm.weight": empty[0]}, None, ("model.norm.weight", "2-D")),
        ({Q0: good[Q0]}, "2:4", (Q0, "2:4")),
        ({Q0: empty}, "1:5", ("1:5",)),  # 32 inputs have no groups of 5
        (good, "4:2", ("4:2",)),
    ]
    for masks, pattern, words in cases:
        with one_line_error(BadParameter if pattern == "4:2" else BadParameter, *words):
            save_masks(half, masks, pattern=pattern or "unstructured")
        assert (half / "masks.safetensors").read_bytes() == before


def test_a_folder_without_a_saved_model(tmp_path: Path, one_line_error) -> None:
    for call in (lambda: save_masks(tmp_path, {}), lambda: size_report(tmp_path)):
        with one_line_error(FileError, str(tmp_path), "save_pretrained"):
            call()
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- faults


def test_a_mask_file_that_is_cut_off_changed_or_missing(spoilt: Path, one_line_error) -> None:
    path = spoilt / "masks.safetensors"
    raw = path.read_bytes()
    changed = raw[:-1] + bytes([raw[-1] ^ 4])
    for content, words in [
        (raw[:-1], "save it again"), (changed, "damaged at model.layers."), (None, "missing"),
    ]:  # fmt: skip
        path.unlink() if content is None else path.write_bytes(content)
        for read in (load_masks, check_masks, size_report):
            with one_line_error(FileError, "masks.safetensors", words):
                read(spoilt)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda _, found: found.clear(), ("no description",)),
        (lambda _, found: found.update(version=2), ("format version 2",)),
        (lambda _, found: found.update(pattern="4:2"), ("4:2",)),
        (lambda _, found: found.update(layers=[1]), ("no description",)),
        (lambda _, found: found["layers"][Q0].update(shape=None), ("no description",)),
        (lambda _, found: found["layers"][Q0].update(shape=[32, 33]), ("damaged at", Q0)),
        (lambda tensors, _: tensors.pop(Q0), ("other masks",)),
    ],
)
def test_a_mask_file_that_contradicts_itself(
    spoilt: Path, change: Callable, words: tuple[str, ...], one_line_error
) -> None:
    tensors, found = mask_file(spoilt)
    change(tensors, found)
    path = spoilt / "masks.safetensors"
    save_file(tensors, path, metadata={"masks": json.dumps(found)})
    with one_line_error(FileError, "masks.safetensors", *words):
        load_masks(spoilt)


def test_a_weight_that_came_back(spoilt: Path, one_line_error) -> None:
    weights, keep = stored(spoilt), load_masks(spoilt)[DOWN1]
    zeros = (~keep).nonzero()[:3]
    weights[DOWN1][tuple(zeros[0])] = 1e-30
    weights[DOWN1][tuple(zeros[1])] = float("nan")
    weights[DOWN1][tuple(zeros[2])] = -0.0  # a zero, whatever its sign
    weights[DOWN1][tuple(keep.nonzero()[0])] = 0  # a kept weight may be zero
    store(spoilt, weights)
    for read in (check_masks, size_report):
        with one_line_error(BadParameter, DOWN1, "2 weights"):
            read(spoilt)


def test_masks_of_another_checkpoint(spoilt: Path, one_line_error) -> None:
    others = stored(spoilt)
    others.pop(Q0)
    for weights, word in [
        (others | {Q0: torch.zeros(16, 64)}, "(16, 64)"),
        (others, "no such name"),
    ]:
        store(spoilt, weights)
        with one_line_error(BadParameter, Q0, word):
            check_masks(spoilt)


# ---------------------------------------------------------------- models in memory


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_apply_masks_after_fine_tuning(family: str) -> None:
    model = fam.build(family)
    prune_model(model, method="magnitude", sparsity=0.6)
    masks = masks_of(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
        for name, keep in masks.items():  # what overflowed is cleared too
            model.get_parameter(name)[~keep] = float("inf")
    tuned = fam.snapshot(model)
    apply_masks(model, masks)
    assert fam.changed(model, tuned) == masks.keys()
    for name, keep in masks.items():
        weight = model.get_parameter(name)
        assert (weight[~keep] == 0).all() and torch.equal(weight[keep], tuned[name][keep])
        assert weight.requires_grad


def test_apply_masks_changes_nothing_when_it_refuses(one_line_error) -> None:
    model = fam.build("llama")
    masks = {name: torch.zeros_like(keep) for name, keep in masks_of(model).items()}
    before = fam.snapshot(model)
    wrong = [
        ({DOWN1: masks[DOWN1].T}, (DOWN1, "(64, 32)")),
        ({"module." + Q0: masks[Q0]}, ("module." + Q0, "LlamaForCausalLM")),
        ({DOWN1: masks[DOWN1].float()}, (DOWN1, "float32")),
    ]
    for change, words in wrong:
        with one_line_error(BadParameter, *words):
            apply_masks(model, masks | change)
        assert fam.changed(model, before) == set()
    model.model.layers[1].mlp.down_proj.to("meta")
    with one_line_error(UnsupportedModel, DOWN1):
        apply_masks(model, masks)
    assert (model.model.layers[0].self_attn.q_proj.weight != 0).any()


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("dtype", "pattern", "bits"),
    [
        (torch.float32, "2:4", 32),
        (torch.bfloat16, "unstructured", 16),
        (torch.float32, "3:6", 32),
    ],
    ids=str,
)
def test_sizes_counted_by_hand(tmp_path: Path, dtype: torch.dtype, pattern: str, bits: int) -> None:
    # one layer of twelve weights that keeps five, and four other weights
    layer = torch.tensor([[1, 0, 2, 0, 0, 0], [3, 0, 4, 0, 0, 5]], dtype=dtype)
    layer = layer.reshape(3, 4) if pattern == "2:4" else layer
    weights = {"a.weight": layer, "b": torch.arange(4, dtype=dtype)}
    store(tmp_path, weights)
    save_masks(tmp_path, {"a.weight": layer != 0}, pattern=pattern)
    report, value = size_report(tmp_path), bits // 8
    assert report.attrs["pattern"] == pattern and report.attrs["sparsity"] == pytest.approx(7 / 12)
    assert (report.attrs["weights"], report.attrs["kept"]) == (12, 5)
    assert "no general kernel runs such weights faster" in report.attrs["note"]
    index = {
        "2:4": {"values + index": 6 * 4 + 2 + 16},  # six slots of two bits: two bytes
        "3:6": {"values + index": 6 * 4 + 3 + 16},  # six slots of three bits
        "unstructured": {},
    }
    assert report["bytes"].to_dict() == {
        "files": (tmp_path / "model.safetensors").stat().st_size,
        "mask file": (tmp_path / "masks.safetensors").stat().st_size,
        "dense": 12 * value + 4 * value,
        "mask + values": 2 + 5 * value + 4 * value,  # 12 bits are two bytes
        **index[pattern],
    }
    assert (report["share"] == report["bytes"] / (16 * value)).all()
