"""Training a pruned model as a whole: the divergence, the steps, the masks that hold."""

import copy
import math

import families as fam
import pytest
import torch
from torch.nn import functional

from helpers import device, prune_model
from helpers.beyond import distil as module
from helpers.beyond.distil import distil, divergence, divergence_and_gradient
from helpers.errors import BadParameter, NonFinite, OutOfMemory
from helpers.model.models import find_blocks


def pair(family="llama", sparsity=0.6):
    """A model pruned by Wanda, the dense one, and text that the pruning has not seen."""
    dense = fam.build(family)
    # larger weights: predictions that differ from token to token
    for parameter in dense.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(2)
    model = copy.deepcopy(dense)
    prune_model(model, fam.random_tokens(), method="wanda", sparsity=sparsity)
    return model, dense, fam.random_tokens(sequences=28, seed=7)


def plain_divergence(logits, target):
    """torch's own KL of the targets' distributions from those of the logits, a mean over tokens."""
    ours, wanted = (each.log_softmax(-1).flatten(0, 1) for each in (logits, target))
    return functional.kl_div(ours, wanted, reduction="batchmean", log_target=True)


def test_a_step_is_adams():
    # two steps by hand: torch's own loss, one mask on the gradient, plain Adam, and a rate for each
    # parameter by the size of what is not zero in it
    model, dense, tokens = pair()
    other = copy.deepcopy(model)
    text = tokens[:3]
    distil(model, dense, text, rate=2e-3, vector_rate=3e-3, held_out=1)
    weights = [other.get_submodule(n).weight for n in fam.pruned_names("llama")]
    keeps = [w.detach() != 0 for w in weights]
    shares = {p: 3e-3 for p in other.parameters() if p.ndim == 1}
    shares |= dict.fromkeys(weights, 2e-3)
    optimiser = torch.optim.Adam([{"params": [p]} for p in shares], betas=(0.9, 0.98))
    rates = [s * p[p != 0].square().mean().sqrt().item() for p, s in shares.items()]
    before = divergence(other, dense, text[2:])
    for row, scale in zip(text[:2], (1.0, 0.5), strict=True):
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * scale
        logits, wanted = (each(row[None]).logits for each in (other, dense))
        plain_divergence(logits, wanted.detach()).backward()
        for weight, keep in zip(weights, keeps, strict=True):
            weight.grad.mul_(keep)
        optimiser.step()
        optimiser.zero_grad()

    # so that the trained weights are kept
    assert divergence(other, dense, text[2:]) < before
    for name, parameter in other.named_parameters():
        found = model.get_parameter(name)
        torch.testing.assert_close(found, parameter, rtol=1e-4, atol=1e-6)


# gradients are the smaller the larger the weights are: with 10,000, Adam's usual epsilon would show
@pytest.mark.parametrize("factor", [5, 10_000])
def test_the_course_does_not_depend_on_the_size_of_weights(factor):
    model, dense, tokens = pair()
    report = distil(copy.deepcopy(model), dense, tokens)
    # the same functions: a norm takes the factor
    for block in [*find_blocks(model), *find_blocks(dense)]:
        for norm in (block.input_layernorm, block.post_attention_layernorm):
            norm.weight.data.div_(factor)
        for name in (*fam.QKVO[:3], "mlp.gate_proj", "mlp.up_proj"):
            block.get_submodule(name).weight.data.mul_(factor)
    scaled = distil(model, dense, tokens)
    assert scaled.kept == report.kept == 24
    assert scaled.losses == pytest.approx(report.losses, rel=1e-5)


@pytest.mark.parametrize(
    "family, parts", [("llama", "all"), ("gpt2", "all"), ("llama", "norms")]
)
def test_the_divergence_on_unseen_text_falls_and_zeros_stay(family, parts):
    model, dense, tokens = pair(family)
    before, teacher = fam.snapshot(model), fam.snapshot(dense)
    unseen = fam.random_tokens(sequences=6, seed=11)
    start = divergence(model, dense, unseen)
    report = distil(model, dense, tokens, parts=parts, rate=1e-2, vector_rate=1e-2)
    assert divergence(model, dense, unseen) < 0.9 * start
    assert len(report.losses) == 24
    assert not report.warning
    assert [step for step, _ in report.held_out] == [0, 6, 24]
    weights = {f"{name}.weight" for name in fam.pruned_names(family)}
    for name in weights:
        assert torch.equal(model.get_parameter(name) == 0, before[name] == 0), name
    # matrices outside the blocks (embedding, head) are not trained, and the teacher is as it was
    moved = fam.changed(model, before)
    assert weights & moved == (weights if parts == "all" else set())
    assert all(model.get_parameter(name).ndim == 1 for name in moved - weights)
    assert not fam.changed(dense, teacher)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_a_repair_that_does_harm_is_given_up_with_a_warning(caplog):
    model, dense, tokens = pair(sparsity=0.05)
    before = fam.snapshot(model)
    # nearly dense, and a rate at which every look is worse than the start
    report = distil(model, dense, tokens, rate=1.0, vector_rate=1.0)
    assert [step for step, _ in report.held_out] == [0, 6, 12]
    assert len(report.losses) == 12
    assert report.kept == 0
    assert not fam.changed(model, before)
    assert report.warning and report.warning in caplog.text


@pytest.mark.parametrize(
    "stop, error, words",
    [
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (torch.OutOfMemoryError("2 GiB\nmore lines"), OutOfMemory, "2 GiB.*norms"),
        (None, NonFinite, "smaller rate"),  # the first step makes every weight infinite
    ],
)
def test_a_run_that_breaks_off_leaves_the_best_weights(stop, error, words, monkeypatch):
    model, dense, tokens = pair()
    before = fam.snapshot(model)
    if stop is None:
        monkeypatch.setattr(module, "rate_at", lambda _step, _steps: math.inf)

    def progress(step, _total, _name):
        if stop and step == 3:
            raise stop

    with pytest.raises(error, match=words):
        distil(model, dense, tokens, progress=progress)
    assert not fam.changed(model, before)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_divergence_and_gradient_are_autograds_where_products_are_rounded_too():
    logits = torch.randn(2, 40, 50, requires_grad=True)
    target = 3 * torch.randn(2, 40, 50)
    plain = plain_divergence(logits, target)
    plain.backward()
    with device.products("bfloat16", torch.device("cpu")):
        loss, slope = divergence_and_gradient(logits.detach(), target)
    assert loss == pytest.approx(plain.item(), rel=1e-5)
    torch.testing.assert_close(slope, logits.grad, rtol=1e-4, atol=1e-8)


def test_what_cannot_be_trained_is_refused_before_anything_changes(one_line_error):
    model, dense, tokens = pair()
    before = fam.snapshot(model)
    given = dict(model=model, dense=dense, tokens=tokens)
    for change, word in (
        (dict(dense=model), "second time"),
        (dict(dense=fam.build("gpt2")), "parameters"),
        (dict(dense=copy.deepcopy(model)), "dense model"),
        (dict(model=copy.deepcopy(model).half()), "float32"),
        (dict(tokens=tokens[:4]), "4 windows"),
        (dict(parts="head"), "parts 'head'"),
    ):
        with one_line_error(BadParameter, word):
            distil(**given | change)
    assert not fam.changed(model, before)
