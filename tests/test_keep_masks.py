"""Zeros that stay zeros, whatever trains the model."""

import copy

import families as fam
import pytest
import torch
from transformers import Trainer, TrainingArguments

from helpers import keep_masks, prune_model
from helpers.errors import BadParameter

OPTIMISERS = ("SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "NAdam", "Rprop", "Muon")


def pruned(family="llama"):
    """A model at 60 %, and where each layer is zero."""
    model = fam.build(family)
    prune_model(model, fam.random_tokens(), method="wanda", sparsity=0.6)
    names = fam.pruned_names(family)
    return model, {
        name: model.get_submodule(name).weight.detach() == 0 for name in names
    }


def moved(model, zeros):
    """How many of the zeros are not zero any more."""
    weights = {name: model.get_submodule(name).weight for name in zeros}
    return sum(int((weights[name][zeros[name]] != 0).sum()) for name in zeros)


def steps(model, make, count=3):
    """A few steps of an optimiser on the language model's own loss."""
    layers = [p for p in model.model.layers.parameters() if p.ndim == 2]
    optimiser = make(layers)
    for tokens in fam.random_tokens(count).split(1):
        optimiser.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimiser.step()


@pytest.mark.parametrize("name", OPTIMISERS)
def test_zeros_stay_with_any_optimiser(name):
    kind = getattr(torch.optim, name, None)
    if kind is None:
        pytest.skip(f"this torch has no {name}")
    model, zeros = pruned()
    plain, before = copy.deepcopy(model), fam.snapshot(model)
    with keep_masks(model):
        steps(model, lambda layers: kind(layers, lr=1e-2))
    assert moved(model, zeros) == 0 and len(fam.changed(model, before)) >= 14
    steps(plain, lambda layers: kind(layers, lr=1e-2))
    assert moved(plain, zeros) > 0, "so that the masks have done something"


def test_it_acts_when_it_is_called_until_it_is_removed(one_line_error):
    model, zeros = pruned()
    handle = keep_masks(model)
    for kept in (True, False):
        steps(model, lambda layers: torch.optim.SGD(layers, lr=1e-2))
        assert (moved(model, zeros) == 0) == kept
        # else they would count where gradients are clipped by their norm
        assert kept != any(
            model.get_submodule(n).weight.grad[z].any() for n, z in zeros.items()
        )
        handle.remove()
    with one_line_error(BadParameter, "prune it first"):
        keep_masks(fam.build())


@pytest.mark.parametrize("family", ["llama-tied", "gpt2"])
def test_zeros_stay_with_the_trainer_of_transformers(family, tmp_path):
    model, zeros = pruned(family)
    before = fam.snapshot(model)
    asked = TrainingArguments(
        output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=2, use_cpu=True,
        learning_rate=1e-2, weight_decay=0.1, save_strategy="no", report_to=[], disable_tqdm=True,
    )  # fmt: skip
    rows = [{"input_ids": row, "labels": row} for row in fam.random_tokens(8)]
    with keep_masks(model):
        Trainer(model=model, args=asked, train_dataset=rows).train()
    assert moved(model, zeros) == 0 and fam.changed(model, before)
