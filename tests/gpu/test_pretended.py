"""What a pretended GPU counts: waits of the host, and bytes. Skipped on a real one, which does not."""

import copy

import families as fam
import pytest
import torch
import transformers as hf
from pretend import pretended_gpu

from helpers import METHODS, distil, guide, prune_model
from helpers.errors import OutOfMemory
from helpers.gram import Gram
from helpers.machine import memory
from helpers.machine.estimates import Shape, phases
from helpers.machine.presets import notebook_memory
from helpers.runner import open_run, read_parameters_cell
from helpers.paths import notebooks_dir

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real GPU")

# of a layer, at 60 % and in a pattern of 2:4; nearly all of them are checks
WAITS = {
    "magnitude": (8, 9),
    "wanda": (16, 17),
    "sparsegpt": (19, 28),
    "admm1": (19, 20),
    "admm-grad": (19, 20),
    "alps": (50, 50),
}
# what each is long of: text, vocabulary, layers; and blocks, with a head of its own
SHAPES = [
    dict(width=64, ff=192, kv=4, vocab=97, blocks=3, length=256),
    dict(width=32, ff=96, kv=4, vocab=8000, blocks=2, length=256),
    dict(width=128, ff=512, kv=4, vocab=97, blocks=2, length=16),
    dict(width=64, ff=128, kv=1, vocab=500, blocks=6, length=64),
]


def test_it_refuses_counts_and_waits(card):
    there = torch.ones(1000, device="cuda")
    here = torch.ones(1000)
    assert card.living == there[10:].nbytes + 40 == 4000
    with pytest.raises(RuntimeError, match="same device"):
        there + here
    with pytest.raises(RuntimeError, match="same device"):
        here[there.long()]
    with pytest.raises(TypeError):
        there.numpy()
    assert there[here.long()].is_cuda and (there * here[0]).is_cuda
    assert card.waits == []
    assert (card.peak, card.living) == (12000, 4000)
    assert bool(there.all()) and there.cpu().equal(here)
    assert len(card.waits) == 2
    del there
    assert card.living == 0


@pytest.mark.parametrize("method, most", WAITS.items())
def test_a_layer_waits_for_its_checks_only(method, most, card):
    inputs = torch.randn(500, 32).to("cuda")
    weight = torch.randn(48, 32).to("cuda")
    for target, limit in zip(({"sparsity": 0.6}, {"pattern": "2:4"}), most, strict=True):
        gram = Gram(32, "cuda")
        gram.add(inputs)
        card.waits.clear()
        METHODS[method](weight, gram if method != "magnitude" else None, **target)
        assert 0 < len(card.waits) <= limit


def test_a_block_and_a_step_wait_so_often(card):
    def waits(work, *args, **options):
        card.waits.clear()
        work(*args, **options)
        return len(card.waits)

    def pruned(blocks, passes):
        model = fam.build("llama", num_hidden_layers=blocks).to("cuda")
        request = dict(method="wanda", sparsity=0.6, passes=passes)
        return waits(prune_model, model, fam.random_tokens(8), **request)

    assert 7 * 16 < pruned(3, 2) - pruned(2, 2) <= 147
    assert 7 * 16 < pruned(3, 1) - pruned(2, 1) <= 149
    dense = fam.build("llama").to("cuda")
    model = copy.deepcopy(dense)
    prune_model(model, method="magnitude", sparsity=0.6)
    few = waits(distil, copy.deepcopy(model), dense, fam.random_tokens(10))
    more = waits(distil, model, dense, fam.random_tokens(12))
    assert 0 < (more - few) / 2 <= 3


@pytest.mark.parametrize("shape", SHAPES)
def test_peak_memory_is_what_the_estimate_says(shape, tmp_path, card):
    length = shape["length"]
    config = hf.LlamaConfig(
        vocab_size=shape["vocab"],
        hidden_size=shape["width"],
        intermediate_size=shape["ff"],
        num_hidden_layers=shape["blocks"],
        num_attention_heads=4,
        num_key_value_heads=shape["kv"],
        tie_word_embeddings=shape["blocks"] < 6,
    )
    config.save_pretrained(tmp_path)
    dense = hf.LlamaForCausalLM(config).eval().to("cuda")
    text = torch.randint(3, shape["vocab"], (8, length))
    parameters = dict(model=str(tmp_path), sequences=8, length=length)

    def check(phase, work, **changes):
        _, estimated = phases(Shape(tmp_path), 4, parameters | changes)[phase]
        before = card.peak = card.living
        work()
        assert card.peak - before == pytest.approx(estimated, rel=0.15), phase

    options = dict(method="admm-grad", sparsity=0.6, batch=1, iterations=1, mask_steps=1)
    check("guide", lambda: guide(dense, text[:2], sparsity=0.6), effort="fast")
    for passes in (1, 2):
        model = copy.deepcopy(dense)
        prune = lambda: prune_model(model, text, passes=passes, **options)
        check("prune", prune, passes=passes)
    check("repair", lambda: distil(model, dense, text[:6]), repair="all")


def test_a_run_that_will_not_fit_is_refused_before_it_starts(card, monkeypatch):
    """On a card like a T4, whose preset is found first."""
    card.total = 15 * 10**9
    monkeypatch.setattr(memory, "ram", lambda: (12 * 10**9, 12 * 10**9))

    def opened(notebook, **changes):
        values, _ = read_parameters_cell(notebooks_dir() / f"{notebook}.ipynb")
        return open_run(notebook, values | changes)

    run = opened("04_prune_model", preset="auto")
    assert run.parameters["model"].startswith("TinyLlama") and run.device.type == "cuda"
    large = dict(run.parameters, dtype="float32")
    with pytest.raises(OutOfMemory, match="GPU memory"):
        opened("08_beyond_the_paper", model=large["model"], length=2048)
