"""Masks that are given, for a layer and a whole model: used as they are, or with more zeros."""

import copy
import functools
import re

import families as fam
import numpy as np
import pytest
import saved
import torch
from huggingface_hub import ModelCard
from layers import largest, layer

from helpers import (
    METHODS,
    gram_of,
    load_model,
    load_streamed,
    masks_of,
    prune_checkpoint,
    prune_model,
    refit,
    register,
    select,
)
from helpers.errors import BadParameter
from helpers.paper.layer import LayerResult
from helpers.paper.masks import mask_hash
from helpers.share import save_pruned

TOKENS = fam.random_tokens()
TWO = pytest.mark.parametrize("family", ["gemma3", "gpt2"])  # one stores weightsᵀ


@functools.cache
def half(family="llama"):
    """Another model than `fam.build`'s, pruned to 50 % by Wanda: each output alike."""
    model = fam.build(family)
    for parameter in model.parameters():
        parameter.data = parameter.data.flip(0)
    prune_model(model, TOKENS, method="wanda", sparsity=0.5, progress=False)
    return model


def masks(family="llama", **changes):
    return {**masks_of(half(family)), **changes}


# ---------------------------------------------------------------- as they are


@TWO
def test_a_model_is_refitted_on_the_masks_of_another(family):
    model = fam.build(family)
    report = prune_model(model, TOKENS, method="admm1", keep=masks(family))
    assert torch.equal(fam.kept(model, family), fam.kept(half(family), family))
    assert report.sparsity == pytest.approx(0.5, abs=0.01)
    wanted = [
        mask_hash(fam.matrix_of(half(family).get_submodule(name)) != 0)
        for name in fam.pruned_names(family)
    ]
    assert sorted(row.mask for row in report.layers) == sorted(wanted)
    # other masks have another hash, and the record says it
    other = prune_model(
        model, method="magnitude", keep=masks(family), allow_pruned=True
    )
    assert other.keep == report.keep == report.details["keep"]
    fewer = {name: mask & (mask.cumsum(0) > 1) for name, mask in masks(family).items()}
    less = prune_model(model, method="magnitude", keep=fewer, allow_pruned=True)
    assert less.keep != report.keep
    assert (
        "keep" not in prune_model(fam.build(), method="magnitude", sparsity=0.5).details
    )


@TWO
def test_the_first_layer_is_least_squares_on_the_given_support(family):
    """Each output by itself: numpy's own least squares on the inputs that it keeps."""
    model, name = fam.build(family), fam.pruned_names(family)[0]
    dense = fam.matrix_of(model.get_submodule(name)).detach().double().numpy().copy()
    inputs = fam.inputs_by_hook(model, [name], TOKENS)[name].double().numpy()
    keep = fam.matrix_of(half(family).get_submodule(name)).detach().numpy() != 0
    options = dict(damping=0.0, iterations=3000, precision="float32")
    prune_model(model, TOKENS, method="admm1", keep=masks(family), **options)
    found = fam.matrix_of(model.get_submodule(name)).detach().numpy()
    for row, kept in enumerate(keep):
        wanted, *_ = np.linalg.lstsq(inputs[:, kept], inputs @ dense[row], rcond=None)
        np.testing.assert_allclose(found[row, kept], wanted, atol=2e-3)
        assert not found[row, ~kept].any()


@TWO
@pytest.mark.parametrize("sparsity", [None, 0.7])
def test_from_file_to_file_it_is_the_same(family, sparsity, tmp_path):
    shards = "1GB" if family == "gpt2" else saved.SHARDS
    source = saved.save(tmp_path / "source", family, shards)
    half(family).save_pretrained(tmp_path / "half", max_shard_size=shards)
    streamed, _ = load_streamed(tmp_path / "half")
    read = masks_of(streamed)
    assert read.keys() == masks(family).keys()
    assert all(torch.equal(read[name], mask) for name, mask in masks(family).items())
    whole, _ = load_model(source)
    how = dict(method="admm-grad", sparsity=sparsity)
    usual = prune_model(whole, TOKENS, keep=masks(family), **how)
    to = tmp_path / "to"
    report = prune_checkpoint(source, to, TOKENS, keep=read, **how)
    assert not fam.changed(saved.loaded(to), fam.snapshot(whole))
    assert report.keep == usual.keep
    # other masks are another request
    fewer = {name: mask & (mask.cumsum(0) > 1) for name, mask in masks(family).items()}
    with pytest.raises(Exception, match="different run"):
        prune_checkpoint(source, to, TOKENS, keep=fewer, **how)


# ---------------------------------------------------------------- more zeros


@TWO
@pytest.mark.parametrize("method", ["magnitude", "wanda", "admm1", "admm-grad", "alps"])
def test_more_zeros_and_none_comes_back(method, family):
    """From the dense weights, and from those that were pruned before."""
    before = fam.kept(half(family), family)
    again = copy.deepcopy(half(family))
    for model in (fam.build(family), again):
        report = prune_model(
            model,
            TOKENS,
            method=method,
            sparsity=0.7,
            keep=masks(family),
            allow_pruned=model is again,
        )
        after = fam.kept(model, family)
        assert not (after & ~before).any()
        assert report.sparsity == pytest.approx(0.7, abs=0.01)
        assert (~after).float().mean() == pytest.approx(0.7, abs=0.01)


@pytest.mark.parametrize("budget", ["matrix", "output"])
def test_a_layer_goes_on_from_its_mask(budget):
    inputs, weight = layer()
    gram = gram_of(inputs)
    keep = select(weight.flip(0).abs(), 0.5, "unstructured", "output")
    # one mask: the largest scores among the kept, then ADMM on it
    score = (weight.abs() * gram.diagonal().sqrt()).numpy()
    score[~keep.numpy()] = -1
    rows = [score] if budget == "matrix" else list(score[:, None])
    wanted = torch.from_numpy(np.concatenate([largest(part, 0.75) for part in rows]))
    options = dict(sparsity=0.75, keep=keep, budget=budget)
    found = METHODS["admm1"](weight, gram, **options)
    assert torch.equal(found.keep, wanted)
    assert torch.equal(found.weight, refit(weight, gram, wanted).weight)
    # a growing mask begins at the given one and never leaves it
    seen = []
    METHODS["admm-grad"](
        weight, gram, trace=lambda _, new, mask: seen.append(mask), **options
    )
    shares = [1 - mask.float().mean().item() for mask in seen]
    assert not any((mask & ~keep).any() for mask in seen)
    assert 0.5 < shares[0] < 0.6
    assert shares == sorted(shares)
    assert shares[14:] == pytest.approx([0.75] * 6, abs=0.01)


# ---------------------------------------------------------------- what does not fit


Q = "model.layers.1.self_attn.q_proj.weight"
DENSE = torch.ones(32, 32, dtype=torch.bool)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"keep": DENSE}, ["keep", "each layer"]),
        ({"keep": {Q: DENSE}}, ["model.layers.0.mlp.down_proj.weight"]),
        ({"keep": masks(extra=DENSE)}, ["extra"]),
        ({"keep": masks(**{Q: DENSE[:3]})}, ["1.self_attn.q_proj", "(3, 32)"]),
        ({"keep": masks(**{Q: DENSE.float()})}, ["1.self_attn.q_proj", "bool"]),
        ({"keep": masks(**{Q: DENSE[0]})}, ["1.self_attn.q_proj", "(32,)"]),
        ({"sparsity": 0.4}, ["layer 0.", "0.4"]),
        ({"sparsity": 60}, ["layer 0.", "0.6"]),
        ({"pattern": "2:4"}, ["layer 0.", "group"]),
        # Wanda counts in each output, and this mask has an output without weights
        (
            {"keep": masks(**{Q: DENSE & (torch.arange(32)[:, None] > 0)})}
            | {"sparsity": 0.6, "method": "wanda"},
            ["1.self_attn.q_proj", "in an output"],
        ),
        ({"sparsity": 0.7, "method": "sparsegpt"}, ["sparsegpt", "go on"]),
        ({"sparsity": 0.7, "method": "stays"}, ["stays", "go on"]),
        ({"method": "deaf"}, ["deaf", "mask"]),
    ],
    ids=str,
)
@pytest.mark.usefixtures("own_methods")
def test_what_does_not_fit_is_refused_before_anything_runs(
    change, words, tmp_path, monkeypatch, one_line_error
):
    @register("stays")
    def stays(weight, gram, *, sparsity, pattern, keep=None):
        keep = select(weight.abs(), sparsity, pattern) if keep is None else keep
        return LayerResult(weight * keep, keep)

    @register("deaf")
    def deaf(weight, gram, *, sparsity, pattern, keep=None):
        keep = select(weight.abs(), sparsity, pattern)
        return LayerResult(weight * keep, keep)

    given = {"method": "admm-grad", "keep": masks()} | change
    model = fam.build()
    before = fam.snapshot(model)
    source = saved.save(tmp_path / "source")
    monkeypatch.setattr(type(model), "forward", None)
    with one_line_error(BadParameter, *words):
        prune_model(model, TOKENS, **given)
    assert not fam.changed(model, before)
    with one_line_error(BadParameter, *words):
        prune_checkpoint(source, tmp_path / "to", TOKENS, **given)
    assert not (tmp_path / "to").exists()


def test_n_of_m_and_layers_that_stay_dense():
    other, model = fam.build(), fam.build()
    ignore = ["*.down_proj"]
    prune_model(other, TOKENS, method="wanda", pattern="2:4", ignore=ignore)
    given = dict(method="sparsegpt", keep=masks_of(other), ignore=ignore)
    report = prune_model(model, TOKENS, pattern="2:4", **given)
    assert torch.equal(fam.kept(model, "llama"), fam.kept(other, "llama"))
    assert report.ignored == ["0.mlp.down_proj", "1.mlp.down_proj"]
    # they may be left out too
    fewer = {name: m for name, m in masks_of(other).items() if "down" not in name}
    again = prune_model(fam.build(), TOKENS, **given | {"keep": fewer})
    assert again.keep == report.keep


@pytest.mark.parametrize(
    "method, sparsity, named, said",
    [
        ("magnitude", None, "magnitude", "as given"),
        ("admm-grad", None, "admm", "as given"),  # no mask grew
        ("admm1", None, "admm", "as given"),
        ("admm-grad", 0.75, "admm-grad", "more zeros"),
    ],
)
@pytest.mark.parametrize("ignore", [(), ["0.*"]])
def test_the_card_says_what_became_of_the_masks(
    method, sparsity, named, said, ignore, tmp_path
):
    model, tokenizer = load_model(saved.save(tmp_path / "source"))
    given = dict(method=method, sparsity=sparsity, ignore=ignore)
    report = prune_model(model, TOKENS, keep=masks(), **given)
    card = ModelCard.load(save_pruned(model, tokenizer, tmp_path / "to") / "README.md")
    assert f"| masks given, hash | {report.keep} |" in card.text
    assert f"| method | {named} |" in card.text
    assert card.data.tags == ["pruned", named]
    (row,) = re.findall(r"\| masks \| (.*) \|", card.text)
    assert said in row
