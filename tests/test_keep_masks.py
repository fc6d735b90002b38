"""Zeros stay zeros under any training."""

import copy

import families as fam
import pytest
import torch
from transformers import Trainer, TrainingArguments

from helpers import keep_masks, prune_model
from helpers.errors import BadParameter

OPTIMISERS = ("SGD", "AdamW", "Adagrad", "RMSprop", "Rprop", "Muon")


def pruned(family="llama"):
    """A model at 60 %, and where its layers are not zero."""
    model = fam.build(family)
    prune_model(model, fam.random_tokens(), method="wanda", sparsity=0.6)
    return model, fam.kept(model, family)


def steps(model, kind):
    """A few steps of an optimiser on the language model's own loss."""
    layers = [p for p in model.model.layers.parameters() if p.ndim == 2]
    optimiser = kind(layers, lr=1e-2)
    for tokens in fam.random_tokens(3).split(1):
        optimiser.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimiser.step()


@pytest.mark.parametrize("name", OPTIMISERS)
def test_zeros_stay_with_any_optimiser(name):
    kind = getattr(torch.optim, name, None)
    if kind is None:
        pytest.skip(f"this torch has no {name}")
    model, kept = pruned()
    plain = copy.deepcopy(model)
    before = fam.snapshot(model)
    with keep_masks(model):
        steps(model, kind)
    assert torch.equal(fam.kept(model, "llama"), kept)
    assert len(fam.changed(model, before)) >= 14
    steps(plain, kind)
    assert fam.kept(plain, "llama").sum() > kept.sum(), "the masks have done something"


def test_it_acts_when_it_is_called_until_it_is_removed(one_line_error):
    model, kept = pruned()
    handle = keep_masks(model)
    for acts in (True, False):
        steps(model, torch.optim.SGD)
        assert torch.equal(fam.kept(model, "llama"), kept) == acts
        # else they would count where gradients are clipped by their norm
        layers = map(model.get_submodule, fam.pruned_names("llama"))
        gradients = torch.cat([layer.weight.grad.flatten() for layer in layers])
        assert gradients[~kept].any() != acts
        handle.remove()
    with one_line_error(BadParameter, "prune it first"):
        keep_masks(fam.build())


@pytest.mark.parametrize("family", ["llama-tied", "gpt2"])
def test_zeros_stay_with_the_trainer_of_transformers(family, tmp_path):
    model, kept = pruned(family)
    before = fam.snapshot(model)
    settings = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=4,
        use_cpu=True,
        learning_rate=1e-2,
        weight_decay=0.1,
        save_strategy="no",
        report_to=[],
    )
    rows = [{"input_ids": row, "labels": row} for row in fam.random_tokens(8)]
    with keep_masks(model):
        Trainer(model=model, args=settings, train_dataset=rows).train()
    assert torch.equal(fam.kept(model, family), kept)
    assert fam.changed(model, before)
