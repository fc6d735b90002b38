"""What a pretended GPU counts, and a real one does not: waits of the host, and bytes of tensors."""

import copy
from unittest import mock

import families as fam
import pytest
import torch
import transformers as hf

from helpers import METHODS, distil, guide, load_model, memory, prune_model
from helpers.errors import OutOfMemory
from helpers.large import torchrun
from helpers.model.token_trees import TreeLM
from helpers.paper.gram import Gram
from helpers.paths import notebooks_dir
from reproduction import open_run
from reproduction.parameters import read_parameters_cell

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real GPU")

TARGETS = ({"sparsity": 0.6}, {"pattern": "2:4"})
# of a layer, for each target; only ALPS waits in its loop, and the others in checks
WAITS = {
    "magnitude": (8, 9),
    "wanda": (16, 17),
    "sparsegpt": (19, 28),
    "alps": (50, 50),
}
WAITS |= {"admm1": (19, 20), "admm-grad": (19, 20)}
# (width, ff, heads of k and v, vocabulary, blocks, length), and by how many thousand bytes memory
# grew, as counted: in the guide, in pruning with one pass and with two, in the repair, in scoring
SHAPES = {
    "long text": ((64, 192, 4, 97, 3, 256), (4654, 3882, 1608, 7202, 2769)),
    "many words": ((32, 96, 4, 8000, 2, 256), (34047, 16470, 16470, 27455, 14822)),
    "wide": ((128, 512, 4, 97, 2, 16), (2266, 5446, 5053, 8983, 5285)),
    "deep": ((64, 128, 1, 500, 4, 64), (1627, 1000, 476, 3397, 2382)),
}


@pytest.fixture
def grown(card):
    """By how many bytes something lets the card's memory grow."""

    def measure(work, *args, **options):
        before = card.peak = card.living
        work(*args, **options)
        return card.peak - before

    return measure


def test_it_refuses_counts_and_waits(card):
    there = torch.ones(1000, device="cuda")
    here = torch.ones(1000)
    assert card.living == there[10:].nbytes + 40 == 4000
    with pytest.raises(RuntimeError, match="same device"):
        there + here
    with pytest.raises(RuntimeError, match="same device"):
        here[there.long()]
    assert there[here.long()].is_cuda and (there * here[0]).is_cuda
    assert (card.peak, card.living, card.waits) == (12000, 4000, [])
    assert bool(there.all()) and there.cpu().equal(here)
    assert len(card.waits) == 2
    del there
    assert card.living == 0


@pytest.mark.parametrize("method, most", WAITS.items())
def test_a_layer_waits_for_its_checks(method, most, card):
    inputs = torch.randn(500, 32).to("cuda")
    for target, limit in zip(TARGETS, most, strict=True):
        gram = Gram(32, "cuda")
        gram.add(inputs)
        card.waits.clear()
        read = gram if METHODS[method].needs_calibration else None
        METHODS[method](inputs[:48], read, **target)
        assert 0 < len(card.waits) <= limit


def test_a_block_waits_for_its_layers_and_a_step_for_its_loss(card):
    def waits(work, *args, **options):
        card.waits.clear()
        work(*args, **options)
        return len(card.waits)

    text = fam.random_tokens(12)
    for passes, most in ((1, 149), (2, 147)):
        request = dict(method="wanda", sparsity=0.6, passes=passes)
        two, three = [fam.build(num_hidden_layers=n).to("cuda") for n in (2, 3)]
        dense = copy.deepcopy(two)
        few = waits(prune_model, two, text, **request)
        assert 7 * 16 < waits(prune_model, three, text, **request) - few <= most
    few = waits(distil, two, dense, text[:10])
    assert 0 < waits(distil, two, dense, text) - few <= 2 * 3


@pytest.mark.parametrize("shape", SHAPES)
def test_peak_memory_does_not_grow(shape, grown):
    (width, ff, kv, vocab, blocks, length), peaks = SHAPES[shape]
    config = hf.LlamaConfig(
        hidden_size=width,
        intermediate_size=ff,
        num_attention_heads=4,
        num_key_value_heads=kv,
        vocab_size=vocab,
        num_hidden_layers=blocks,
    )
    dense = hf.LlamaForCausalLM(config).eval().to("cuda")
    text = torch.randint(3, vocab, (8, length))
    found = [grown(guide, dense, text[:2], sparsity=0.6)]
    request = dict(
        method="admm-grad", sparsity=0.6, batch=1, iterations=1, mask_steps=1
    )
    for passes in (1, 2):
        model = copy.deepcopy(dense)
        found.append(grown(prune_model, model, text, passes=passes, **request))
    found.append(grown(distil, model, dense, text[:6]))
    # four contexts of 30 tokens, each with four choices of 25: two fill a pass
    _, tokenizer = load_model("tiny")
    words = torch.randint(3, vocab, (8, 30)).tolist()
    asked = [(("", ""), words[i], words[j][:25]) for i in range(4) for j in range(4, 8)]
    options = dict(tokenizer=tokenizer, batch_size=4, softmax_dtype=torch.float32)
    harness = TreeLM(pretrained=dense, **options)
    found.append(grown(harness._loglikelihood_tokens, asked))
    for size, peak in zip(found, peaks, strict=True):
        assert 0 < size < 1.1 * 1000 * peak


def test_a_run_that_will_not_fit_is_refused_before_it_starts(card, monkeypatch):
    """On a card like a T4 with Colab's RAM."""
    card.total = 15 * 10**9
    monkeypatch.setattr(memory, "ram", lambda: (12 * 10**9, 12 * 10**9))

    def opened(notebook, **changes):
        values, _ = read_parameters_cell(notebooks_dir() / f"{notebook}.ipynb")
        return open_run(notebook, values | changes)

    run = opened("04_prune_model", preset="auto")
    model = run.parameters["model"]
    assert model.startswith("TinyLlama") and run.device.type == "cuda"
    with pytest.raises(OutOfMemory, match="GPU memory"):
        opened("08_beyond_the_paper", model=model, length=2048)


def test_torchrun_gives_each_process_a_gpu(monkeypatch):
    dist = mock.MagicMock()
    monkeypatch.setattr(torchrun, "dist", dist)
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with torchrun.torchrun_team("cuda") as (team, device):
        assert device == str(team.device) == "cuda:0"
    assert dist.init_process_group.call_args.args == ("nccl",)
