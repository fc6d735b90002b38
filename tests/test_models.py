"""Loading: the names that work, what a record says of them, and every way to get it wrong."""

import shutil
from pathlib import Path

import families as fam
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from helpers import load_model, load_streamed, model_identity
from helpers.data.assets import ASSETS, embedded_model_folder
from helpers.errors import BadParameter, UnsupportedModel
from helpers.models import find_blocks, find_layers

WEIGHT = "transformer.h.1.mlp.c_fc.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 with a tokenizer, saved as safetensors."""
    folder = tmp_path_factory.mktemp("saved")
    fam.build("gpt2").save_pretrained(folder)
    AutoTokenizer.from_pretrained(embedded_model_folder()).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "copy")


def test_the_embedded_model_is_a_real_llama() -> None:
    model, tokenizer = load_model("embedded", device="cpu")
    blocks = find_blocks(model)
    assert type(model).__name__ == "LlamaForCausalLM" and len(blocks) == 30
    assert len(find_layers(blocks[0])) == 7 and model.dtype == torch.float32 and not model.training
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    assert "Paris" in tokenizer.decode(
        model.generate(**prompt, max_new_tokens=3, do_sample=False)[0]
    )
    identity = model_identity(model)
    assert identity["name"] == "embedded" and identity["parameters"] == 134_515_008
    assert identity["sha256"] in ASSETS["model"].members.values()


def test_tiny_is_the_same_every_time_and_leaves_the_random_state_alone() -> None:
    state = torch.random.get_rng_state()
    (one, _), (two, _) = load_model("tiny"), load_model("tiny")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_a_local_folder_is_known_by_its_content(saved: Path, copy: Path) -> None:
    model, tokenizer = load_model(saved, dtype="bfloat16")
    assert model.dtype == torch.bfloat16 and tokenizer("a").input_ids
    expected = fam.build("gpt2").state_dict()[WEIGHT].to(torch.bfloat16)
    assert torch.equal(model.state_dict()[WEIGHT], expected)
    identity = model_identity(model)
    assert identity["architecture"] == "GPT2LMHeadModel" and identity["dtype"] == "bfloat16"
    assert str(saved.parent) not in str(identity)

    assert model_identity(load_model(copy)[0])["sha256"] == identity["sha256"]
    state = load_file(copy / "model.safetensors")
    state[WEIGHT][0, 0] += 1
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    assert model_identity(load_model(copy)[0])["sha256"] != identity["sha256"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [("embeded", '"embedded"'), ("./nowhere", "folder"), ("/no/such/folder", "folder")]
    + [("a/b/c", "owner/name"), ("", '"embedded"'), ("owner/name", "revision="), (3, "embedded")],
)
def test_unknown_names(name: object, hint: str, one_line_error) -> None:
    with one_line_error(BadParameter, str(name), hint):
        load_model(name)


def test_a_hub_or_a_folder_that_has_no_model(tmp_path: Path, one_line_error) -> None:
    with one_line_error(BadParameter, "owner/name", "network"):
        load_model("owner/name", revision="0" * 40)
    with one_line_error(BadParameter, "config.json"):
        load_model(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "pickle", "config"])
def test_a_damaged_checkpoint(copy: Path, damage: str, one_line_error) -> None:
    weights = copy / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif damage == "config":
        (copy / "config.json").write_text("{", encoding="utf-8")
    else:  # pickles are never loaded
        weights.unlink()
        torch.save(fam.build("gpt2").state_dict(), copy / "pytorch_model.bin")
    with one_line_error(BadParameter, str(copy)):
        load_model(copy)


def test_a_checkpoint_that_lacks_weights(copy: Path, one_line_error) -> None:
    # transformers would fill them with random numbers and only print a report
    state = load_file(copy / "model.safetensors")
    del state[WEIGHT]
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    with one_line_error(BadParameter, "lacks 1", "h.1.mlp.c_fc.weight"):
        load_model(copy)


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantised_weights_without_their_scales(
    copy: Path, kind: torch.dtype, one_line_error
) -> None:
    # transformers would take the numbers for the weights
    state = load_file(copy / "model.safetensors")
    state[WEIGHT] = (100 * state[WEIGHT]).clamp(0, 100).to(kind)
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    for load in (load_model, load_streamed):
        with one_line_error(UnsupportedModel, WEIGHT, "unquantised"):
            load(copy)
