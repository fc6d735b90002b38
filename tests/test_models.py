"""Loading: the names that work, what a record says of them, and every way to get it wrong."""

import shutil

import families as fam
import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import load_model, model_identity
from helpers.data.assets import MODELS
from helpers.errors import BadParameter, UnsupportedModel
from helpers.model.models import find_blocks, find_layers, load_shapes, model_layers

WEIGHT = "transformer.h.1.mlp.c_fc.weight"


@pytest.fixture
def saved(tmp_path):
    """A tiny GPT-2 with a tokenizer, saved as safetensors."""
    folder = tmp_path / "saved"
    for part in (fam.build("gpt2"), load_model("tiny")[1]):
        part.save_pretrained(folder)
    return folder


def change(folder, weight):
    """Store another weight in a saved model, or none."""
    state = load_file(folder / "model.safetensors")
    state[WEIGHT] = weight
    if weight is None:
        del state[WEIGHT]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def test_the_embedded_model_is_a_real_llama():
    model, tokenizer = load_model("embedded", device="cpu")
    assert len(find_blocks(model)) == 30
    assert len(find_layers(find_blocks(model)[0])) == 7
    assert not model.training
    assert model.dtype == torch.float32
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=3, do_sample=False)[0]
    assert "Paris" in tokenizer.decode(answer)
    identity = model_identity(model)
    assert identity["name"] == "embedded"
    assert identity["parameters"] == 134_515_008
    assert identity["sha256"] == MODELS["embedded"].sha256


def test_tiny_is_the_same_every_time_and_leaves_the_random_state_alone():
    state = torch.random.get_rng_state()
    (one, _) = load_model("tiny")
    (two, _) = load_model("tiny")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not fam.changed(one, fam.snapshot(two))


def test_a_local_folder_is_known_by_its_content(saved):
    model, tokenizer = load_model(saved, dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    assert tokenizer("a").input_ids
    weight = fam.build("gpt2").state_dict()[WEIGHT]
    assert torch.equal(model.state_dict()[WEIGHT], weight.bfloat16())
    identity = model_identity(model)
    assert identity["architecture"] == "GPT2LMHeadModel"
    assert identity["dtype"] == "bfloat16"
    assert str(saved.parent) not in str(identity)
    copy = shutil.copytree(saved, saved.parent / "copy")
    assert model_identity(load_model(copy)[0])["sha256"] == identity["sha256"]
    change(copy, weight + 1)
    assert model_identity(load_model(copy)[0])["sha256"] != identity["sha256"]


@pytest.mark.parametrize(
    "name, hint",
    [
        ("embeded", '"embedded"'),
        ("./nowhere", "folder"),
        ("a/b/c", "owner/name"),
        (3, "embedded"),
        ("owner/name", "revision="),
        ("", '"embedded"'),
    ],
)
def test_unknown_names(name, hint, one_line_error):
    with one_line_error(BadParameter, str(name), hint):
        load_model(name)


def test_a_hub_that_is_not_reached(one_line_error):
    with one_line_error(BadParameter, "owner/name"):
        load_model("owner/name", revision="0" * 40)


@pytest.mark.parametrize(
    "file, content",
    [
        ("model.safetensors", b"cut off"),
        ("model.safetensors", None),  # pickles are never loaded
        ("config.json", b"{"),
        ("config.json", b"[1]"),
        ("config.json", None),
    ],
)
def test_a_damaged_checkpoint(saved, file, content, one_line_error):
    torch.save(fam.build("gpt2").state_dict(), saved / "pytorch_model.bin")
    (saved / file).unlink()
    if content:
        (saved / file).write_bytes(content)
    with one_line_error(BadParameter, str(saved)):
        load_model(saved)


@pytest.mark.parametrize(
    "kind, error",
    [
        # transformers would fill it with random numbers and only print a report
        (None, BadParameter),
        # transformers would take the numbers, without their scales, for the weights
        (torch.int8, UnsupportedModel),
        (torch.float8_e4m3fn, UnsupportedModel),
    ],
)
def test_a_weight_that_is_missing_or_quantised(saved, kind, error, one_line_error):
    change(saved, None if kind is None else torch.ones(32, 128).to(kind))
    with one_line_error(error, "h.1.mlp.c_fc.weight"):
        load_model(saved)


@pytest.mark.parametrize("name", fam.FAMILIES)
def test_shapes_are_known_without_weights(name, tmp_path):
    fam.FAMILIES[name].config().save_pretrained(tmp_path)
    layers = model_layers(load_shapes(tmp_path))
    assert all(layer.weight.is_meta for layer in layers.values())
    built = model_layers(fam.build(name))
    assert {key: layer.weight.shape for key, layer in layers.items()} == {
        key: layer.weight.shape for key, layer in built.items()
    }
