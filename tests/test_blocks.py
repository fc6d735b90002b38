"""Finding what to prune in many tiny families, and replaying their blocks against the models."""

import threading
from concurrent.futures import ThreadPoolExecutor

import families as fam
import pytest
import torch
import transformers as hf
from torch import nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from helpers import guide, prune_model
from helpers.errors import BadParameter, UnsupportedModel
from helpers.model import block_grams
from helpers.model import blocks as cap
from helpers.model.block_loop import Loop, Team
from helpers.model.models import find_blocks, find_layers
from helpers.paper.gram import Gram

EVERY = sorted(fam.FAMILIES)
BATCH = 2


# ---------------------------------------------------------------- models


def test_encoder_decoders_and_blockless_models_are_refused(one_line_error):
    sizes = dict(vocab_size=97, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=2)
    with one_line_error(UnsupportedModel, "T5"):
        find_blocks(hf.T5ForConditionalGeneration(hf.T5Config(**sizes)))
    model = fam.build()
    model.model.layers = nn.ModuleDict({"0": model.model.layers[0]})
    with one_line_error(UnsupportedModel, "Llama"):
        find_blocks(model)


def test_a_multimodal_model_is_pruned_in_its_text_part():
    # Both towers are two blocks deep: only the config says which is the language model's.
    vision = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    config = hf.LlavaConfig(
        vision_config=vision | {"model_type": "clip_vision_model"},
        text_config=fam.FAMILIES["llama"].config().to_dict(),
        image_token_index=96,
    )
    blocks = find_blocks(hf.LlavaForConditionalGeneration(config))
    assert "mlp.gate_proj" in find_layers(blocks[0])


# ---------------------------------------------------------------- replay


@pytest.mark.parametrize("family", EVERY)
def test_layers_streams_and_grams_are_the_models_own(family):
    """The layers are those listed by hand; streams and inputs those of one plain forward pass."""
    model = fam.build(family)
    tokens = fam.random_tokens(4)
    known = fam.FAMILIES[family]
    blocks = find_blocks(model)
    assert blocks is model.get_submodule(known.blocks)
    assert len(blocks) == known.depth
    names = [f"{known.blocks}.{index}" for index in range(known.depth)]
    inputs = fam.inputs_by_hook(model, [*names, *fam.pruned_names(family)], tokens)
    # arguments recorded with the first sequences hold for others of the same shape
    captured = cap.record_calls(model, tokens[:BATCH])
    stream = cap.embed(model, tokens, BATCH)
    for name, block, call in zip(names, blocks, captured, strict=True):
        entering = stream.flatten(0, 1)
        torch.testing.assert_close(entering, inputs[name], rtol=0, atol=1e-6)
        before = stream.clone()
        grams = block_grams.layer_grams(block, stream, call, BATCH)
        assert set(grams) == set(known.layers)
        assert torch.equal(stream, before)
        rows = {layer: inputs[f"{name}.{layer}"].double() for layer in grams}
        # one gram for the layers that read the same input
        different = {tuple(x[0].tolist()) for x in rows.values()}
        assert len({id(gram) for gram in grams.values()}) == len(different)
        for layer, x in rows.items():
            assert grams[layer].tokens == len(x) == tokens.numel()
            found = grams[layer].matrix.double()
            atol = 1e-5 * found.abs().max().item()
            torch.testing.assert_close(found, x.T @ x, rtol=1e-4, atol=atol)
        cap.advance(block, stream, call, BATCH, name)
    assert not torch.allclose(stream, before, atol=1e-2)  # a block does something
    # what leaves the last block is compared as logits
    assert 0 <= cap.check_parity(model, captured, tokens[BATCH:]) < 1e-6
    assert fam.hook_count(model) == 0


def test_the_stream_may_be_passed_by_name(monkeypatch):
    # no family above does; which do differs between versions of transformers
    call = LlamaDecoderLayer.__call__
    by_name = lambda self, states, **others: call(self, **others, hidden_states=states)  # noqa: E731
    monkeypatch.setattr(LlamaDecoderLayer, "__call__", by_name)
    model = fam.build()
    tokens = fam.random_tokens(BATCH)
    stream = cap.first_stream(model, tokens)
    calls = cap.record_calls(model, tokens)
    torch.testing.assert_close(stream, model.model.embed_tokens(tokens))
    assert cap.check_parity(model, calls, tokens.flip(1)) < 1e-6


# ---------------------------------------------------------------- grams


def run_elsewhere(model, tokens, *modules):
    """Let another thread run the whole model each time that this one comes to one of the modules.

    As an explorer does that a reader has left running. Returns what that thread has got.
    """
    here = threading.get_ident()
    logits = []

    def meanwhile(*_):
        if threading.get_ident() == here:
            with ThreadPoolExecutor(1) as other:
                logits.append(other.submit(cap.forward, model, tokens).result())

    for module in modules:
        module.register_forward_pre_hook(meanwhile)
    return logits


def grams_of(model, tokens):
    problems = block_grams.layer_problems(model, tokens, 1, fam.LLAMA_LAYERS, batch=2)
    return [gram for _, gram in problems.values()]


def weights_of(passes):
    def pruned(model, tokens):
        prune_model(model, tokens, method="admm1", sparsity=0.5, passes=passes)
        return list(fam.snapshot(model).values())

    return pruned


def importance_of(model, tokens):
    return list(guide(model, tokens, sparsity=0.5).importance.values())


@pytest.mark.parametrize(
    "measure", [grams_of, weights_of(1), weights_of(2), importance_of]
)
def test_what_another_thread_runs_is_not_counted(measure):
    tokens = fam.random_tokens()
    alone = measure(fam.build(), tokens)
    model = fam.build()
    others = fam.random_tokens(1, 7, seed=5)
    expected = cap.forward(model, others)
    inside = [block.mlp.up_proj for block in find_blocks(model)]
    seen = run_elsewhere(model, others, *inside)
    found = measure(model, tokens)
    assert len(seen) > 2
    assert all(map(torch.equal, found, alone))
    # nor is the other thread's pass disturbed: its first ones met the dense model
    assert torch.equal(seen[0], expected)


def test_another_thread_gets_the_models_own_logits_during_the_parity_gate():
    model = fam.build()
    tokens = fam.random_tokens(BATCH)
    expected = cap.forward(model, tokens[:1])
    calls = cap.record_calls(model, tokens)
    seen = run_elsewhere(model, tokens[:1], model.model.norm)
    assert cap.check_parity(model, calls, tokens.flip(1)) < 1e-6
    # once in the model's own pass, and once where the blocks hand on what is known
    assert len(seen) == 2
    assert all(torch.equal(logits, expected) for logits in seen)


@pytest.mark.parametrize("family, layer", [("opt", "fc2"), ("gpt2", "mlp.c_proj")])
def test_layer_gram_is_that_of_the_dense_model_without_dropout(family, layer):
    model = fam.build(family)
    tokens = fam.random_tokens(5)
    name = f"{fam.FAMILIES[family].blocks}.1.{layer}"
    x = fam.inputs_by_hook(model, [name], tokens)[name].double()
    model.train()
    steps = []
    show = lambda *step: steps.append(step[:2])  # noqa: E731
    found = block_grams.layer_problems(model, tokens, 1, [layer], progress=show)
    weight, gram = found[layer]
    torch.testing.assert_close(gram.double(), x.T @ x, rtol=1e-4, atol=1e-3)
    assert torch.equal(weight, fam.matrix_of(model.get_submodule(name)))
    assert model.training
    assert steps == [(1, 2), (2, 2)], "the last one too"


@pytest.mark.parametrize(
    "block, layer, word", [(2, "fc2", "0 to 1"), (-1, "fc2", "-1"), (0, "fc3", "fc2")]
)
def test_a_layer_that_is_not_there(block, layer, word, one_line_error):
    with one_line_error(BadParameter, word):
        text = fam.random_tokens(2)
        block_grams.layer_problems(fam.build("opt"), text, block, [layer])


@pytest.mark.parametrize(
    "sequences, batch, said",
    [(127, 32, "128 sequences"), (96, 32, ""), (31, 4, "32 sequences")],
)
def test_an_odd_number_of_sequences_is_warned_of(sequences, batch, said, caplog):
    """All batches have the size of the recorded one, so it has to divide the sequences."""
    block_grams.Replay(fam.build("opt"), fam.random_tokens(sequences), batch)
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)


class Filled(Team):
    """The other process of a team, whose text reaches the expert that the text here misses."""

    def sum(self, grams):
        for gram in grams.values():
            gram.add(torch.ones(3, 4))


def test_grams_are_checked_once_they_are_those_of_all_processes(one_line_error):
    class Missed(block_grams.Replay):
        def measure(self, *_):
            yield {"experts.1": Gram(4)}

    model = fam.build("opt")
    text = Missed(model, fam.random_tokens(2), 1)
    target = dict(method="wanda", options={}, sparsity=0.5)
    loop = Loop(model, text.tokens, **target, batch=1, team=Filled())
    (grams,) = loop.stages(1, text, None)
    assert grams["experts.1"].tokens == 3
    loop.team = Team()
    with one_line_error(UnsupportedModel, "block 1 experts.1"):
        list(loop.stages(1, text, None))
