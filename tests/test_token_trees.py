"""Zero-shot requests run as trees, against lm-eval's own model and trees drawn by hand."""

import families as fam
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from torch.nn.functional import scaled_dot_product_attention

from helpers.model.models import load_model
from helpers.model.token_trees import TreeLM, WithinTrees, packs

# their blocks look at places of the sequence, whatever mask and positions say
STOCK = ("bloom", "mpt", "gpt-neo")


@pytest.fixture(scope="module")
def harness():
    """A model's harness of either kind; token ids are given, so any tokenizer does."""
    _, tokenizer = load_model("tiny", device="cpu")
    options = dict(tokenizer=tokenizer, batch_size=3, softmax_dtype=torch.float32)
    return lambda model, kind=TreeLM: kind(pretrained=model, **options)


def some(length, seed):
    return fam.random_tokens(1, length, seed)[0].tolist()


def written(model, context):
    """The three tokens that the model would write."""
    tokens = list(context)
    for _ in range(3):
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[-3:]


def requests(context, *choices):
    return [(("", ""), context, choice) for choice in choices]


def questions(model):
    """Choices of one to six tokens after contexts of one token to more than a window or a model."""
    items = []
    for place, length in enumerate((1, 5, 6, 6, 20, 21, 40, 41, 122)):
        context = some(length, seed=length + place)
        for i in range(3):
            choice = some(1 + (place + 2 * i) % 6, seed=100 * place + i)
            items += requests(context, choice)
        items += requests(context, written(model, context))
    # two choices that differ in the last token alone; one ending of two contexts; what is too long
    items += requests(some(9, 9), [7], [8])
    items += requests(some(12, 12), [4, 5]) + requests(some(13, 13), [4, 5])
    if hasattr(model.config, "max_position_embeddings"):  # 128, which lm-eval knows
        items += requests(some(140, 140), [3], [6])
        items += requests(some(127, 127), [3, 4, 5])
    # the choices of a context need not lie side by side
    return items[::2] + items[1::2]


@pytest.mark.parametrize("family", fam.FAMILIES)
def test_likelihoods_are_those_of_the_stock_model(family, harness):
    model = fam.build(family)
    items = questions(model)
    ours = harness(model)
    answers, greedy = zip(*ours._loglikelihood_tokens(items), strict=True)
    stock = harness(model, HFLM)._loglikelihood_tokens(items)
    expected, written = zip(*stock, strict=True)
    assert ours.trees == (family not in STOCK)
    assert 4 < sum(written) < len(items) / 2
    assert greedy == written
    assert answers == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("family", ["mamba", "lfm2", "falcon"])
def test_what_runs_no_trees_is_left_to_the_stock_model(family, harness):
    model = fam.build(family, **dict(alibi=True) if family == "falcon" else {})
    items = questions(model)
    ours = harness(model)
    assert not ours.trees
    stock = harness(model, HFLM)._loglikelihood_tokens(items)
    assert ours._loglikelihood_tokens(items) == stock


def test_a_model_without_use_of_its_mask_is_found_out(harness):
    model = fam.build("llama")
    # a family that would take any mask and leave it aside
    deaf = lambda _, args, options: (args, options | {"attention_mask": None})  # noqa: E731
    model.model.register_forward_pre_hook(deaf, with_kwargs=True)
    assert not harness(model).trees


def test_packs_by_hand():
    one = dict(enumerate(requests([5, 6, 7], [1], [2, 3])))  # 3 + 1 tokens
    two = {2: (None, [4, 4, 4, 4], [9]), 3: (None, [8], [3, 3, 3])}  # 4, and 1 + 2
    swapped = {key: (one | two)[key] for key in (3, 0, 2, 1)}
    assert packs(swapped, 8) == [[2, 0, 1], [3]]
    # what is longer is a pass of its own
    assert packs(swapped, 3) == [[2], [0, 1], [3]]


def test_a_token_runs_once(harness):
    model = fam.build("llama")
    passes = []
    ours = harness(model)
    model.model.embed_tokens.register_forward_pre_hook(
        lambda _, args: passes.append(tuple(args[0].shape))
    )
    choices = [[3, 4, 5], [6, 7, 8], [3, 4, 9]]
    items = requests(some(60, 1), *choices) + requests(some(50, 2), *choices)
    items += requests(some(70, 3), [4], [5])
    ours._loglikelihood_tokens(items)
    # 60, 50 and 70 tokens, and after two of them 3 4 and 6 7: the last of a text is not read
    assert passes == [(1, 64 + 54 + 70)]


def test_attention_stays_within_its_tree():
    values = torch.full((1, 1, 5, 8), torch.nan)
    values[..., :3, :] = 1.0  # of the first tree, which a look at the other would spoil
    mask = torch.block_diag(torch.ones(3, 3), torch.ones(2, 2)).log()
    with WithinTrees([3, 2]):
        found = scaled_dot_product_attention(values, values, values, attn_mask=mask)
    assert found.nan_to_num().equal(values.nan_to_num())
