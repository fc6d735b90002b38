"""`Refine` and `Compensate`: the loss, the steps and the streams, each against plain torch."""

import copy
import json
import math

import families as fam
import pytest
import torch
from torch import Tensor, nn

from helpers import prune_model
from helpers.beyond import blocks
from helpers.beyond.blocks import BlockFit, Compensate, DenseStream, Refine
from helpers.beyond.training import trained
from helpers.capture import Call
from helpers.errors import BadParameter, HelpersError, NonFinite
from helpers.models import find_layers
from helpers.precision import products

PLAIN = dict(method="wanda", sparsity=0.6)
STEP = dict(precision="float32", rates=[3e-3, 1e-3])
# enough to learn something from random text, which tells a model little
LONG = dict(rates=[1e-2, 3e-3], passes=4)
FAMILIES = ["llama", "gpt2", "gemma2", "falcon"]


def text(sequences: int = 20) -> Tensor:
    return fam.random_tokens(sequences, 16)


def hidden(model: nn.Module, tokens: Tensor) -> tuple[Tensor, ...]:
    """The stream entering each block, from the model's own forward pass."""
    with torch.no_grad():
        return model(tokens, output_hidden_states=True, use_cache=False).hidden_states


def loss_by_hand(output: Tensor, target: Tensor) -> float:
    errors = [
        ((o - t).norm() ** 2 / t.norm() ** 2).item()
        for o, t in zip(output.flatten(0, 1), target.flatten(0, 1), strict=True)
    ]
    return sum(errors) / len(errors)


def refined(family: str = "llama", tokens: Tensor | None = None, **options: object):
    """A model after Wanda and `Refine`, and the step."""
    model, tokens = fam.build(family), text() if tokens is None else tokens
    step = Refine(model, tokens, **{**STEP, **options})
    prune_model(model, tokens, **PLAIN, before_block=step.before, after_block=step.after)
    return model, step


def compensated(family: str = "llama", tokens: Tensor | None = None, **options: object):
    """A model after `Compensate` and Wanda, and the step."""
    model, tokens = fam.build(family), text() if tokens is None else tokens
    step = Compensate(model, tokens, **{**STEP, **options})
    prune_model(model, tokens, **PLAIN, before_block=step.before)
    return model, step


def pruned(family: str = "llama", tokens: Tensor | None = None) -> nn.Module:
    model = fam.build(family)
    prune_model(model, text() if tokens is None else tokens, **PLAIN)
    return model


def zeros(model: nn.Module, family: str) -> dict[str, Tensor]:
    return {name: model.get_submodule(name).weight == 0 for name in fam.pruned_names(family)}


# ---------------------------------------------------------------- a step, by hand


class Toy(nn.Module):
    """A block of one linear layer and a norm, which returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(6), nn.Linear(6, 6)
        with torch.no_grad():
            self.linear.weight[:, ::2] = 0

    def forward(self, stream: Tensor, scale: float = 1.0) -> tuple[Tensor, None]:
        return stream + scale * self.linear(self.norm(stream)), None


def toy_pairs(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    pairs = [(torch.randn(1, 5, 6), torch.randn(1, 5, 6)) for _ in range(count)]
    for _, target in pairs:
        target[:, 0] *= 1000  # a token with massive activations
    return pairs


def test_the_loss_is_the_mean_relative_error_of_a_token() -> None:
    block, pairs = Toy(), toy_pairs(2)
    with trained(block, find_layers(block)) as weights:
        fit = BlockFit("toy", block, Call((), dict(scale=0.5)), weights, "float32")
        by_hand = [loss_by_hand(block(rows, 0.5)[0], target) for rows, target in pairs]
        assert fit.loss(pairs[0]).item() == pytest.approx(by_hand[0], rel=1e-5)
        assert fit.judged(pairs) == pytest.approx(sum(by_hand) / 2, rel=1e-5)


def test_a_descent_is_adam_on_the_kept_weights() -> None:
    block, pairs, rate = Toy(), toy_pairs(), 0.01
    plain, mask = copy.deepcopy(block), block.linear.weight.detach() != 0
    # the mask inside the product: autograd then gives the masked gradient by itself
    adam = torch.optim.Adam(plain.parameters(), betas=(0.9, 0.98))
    for (rows, target), share in zip(pairs, [1, 0.8535534, 0.5, 0.1464466], strict=True):
        adam.param_groups[0]["lr"] = rate * share
        adam.zero_grad()
        product = plain.norm(rows) @ (plain.linear.weight * mask).T + plain.linear.bias
        errors = (rows + product - target).norm(dim=-1) ** 2 / target.norm(dim=-1) ** 2
        errors.mean().backward()
        adam.step()
    before = copy.deepcopy(block)
    with trained(block, find_layers(block)) as weights:
        BlockFit("toy", block, Call((), {}), weights, "float32").descend(pairs, rate)
    for name, value in plain.named_parameters():
        found, old = block.get_parameter(name), before.get_parameter(name)
        assert torch.allclose(found, value, rtol=1e-4, atol=1e-6), name
        assert (found - old).abs().max() > rate / 2, name
    assert (block.linear.weight[~mask] == 0).all()


def test_products_in_bfloat16_see_the_weights_of_each_step() -> None:
    layer, rows = nn.Linear(4, 1, bias=False), torch.ones(1, 4)
    with products("bfloat16", torch.device("cpu")):
        layer(rows).sum().backward()
        with torch.no_grad():
            layer.weight.fill_(3)
        assert layer(rows).item() == 12 and layer(rows).dtype == torch.bfloat16


# ---------------------------------------------------------------- streams


@pytest.mark.parametrize("step", [Refine, Compensate])
def test_the_dense_stream_is_that_of_the_untouched_model(step: type) -> None:
    model, tokens = fam.build("gemma3"), text(6)
    expected, seen = hidden(model, tokens), []
    made = step(model, tokens, held_out=2, **STEP)

    def before(index: int, block: nn.Module, stream: Tensor, call: Call) -> None:
        given, dense = stream.clone(), made.dense
        made.before(index, block, stream, call)
        assert torch.equal(stream, given)
        seen.append((given, dense.stream.clone()))

    def after(index: int, block: nn.Module, stream: Tensor, call: Call) -> None:
        given = stream.clone()
        if step is Refine:
            made.after(index, block, stream, call)
        assert torch.equal(stream, given)

    prune_model(model, tokens, **PLAIN, before_block=before, after_block=after, batch=3)
    # the model's last hidden state is after its norm: two of three blocks can be compared
    for index in (0, 1):
        assert torch.allclose(seen[index][1], expected[index + 1], rtol=1e-4, atol=1e-4)
    # and the loop's stream, from the second block on, is another one
    assert loss_by_hand(seen[1][0], expected[1]) > 1e-3
    assert made.dense is None  # freed


@pytest.mark.parametrize("family", FAMILIES)
def test_refining_lowers_the_error_of_held_out_text_and_keeps_the_zeros(family: str) -> None:
    tokens = text(40)
    dense, plain = fam.build(family), pruned(family, tokens)
    model, step = refined(family, tokens, **LONG)
    # both models give block 0 the same stream
    judge = tokens[-4:]
    target, without, now = (hidden(m, judge)[1] for m in (dense, plain, model))
    first = step.reports[0]
    assert first.loss_before == pytest.approx(loss_by_hand(without, target), rel=1e-3)
    assert first.loss_after == pytest.approx(loss_by_hand(now, target), rel=1e-3)
    assert first.loss_after < 0.8 * first.loss_before
    assert all(r.improved and r.loss_after < 0.95 * r.loss_before for r in step.reports)
    assert [report.block for report in step.reports] == [0, 1]
    # the mask of block 0 is Wanda's, and no layer has lost or won a weight
    found, masks = zeros(model, family), zeros(plain, family)
    for name in fam.pruned_names(family):
        assert found[name].sum() == masks[name].sum()
        if name.startswith(f"{fam.FAMILIES[family].blocks}.0."):
            assert torch.equal(found[name], masks[name])
    ends = [hidden(m, judge)[-1] for m in (dense, plain, model)]
    assert loss_by_hand(ends[2], ends[0]) < 0.85 * loss_by_hand(ends[1], ends[0])
    # trained, and left as it was found
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_norms_are_trained_and_what_is_outside_the_blocks_is_not() -> None:
    before = fam.snapshot(fam.build())
    names = {name.removesuffix(".weight") for name in fam.changed(refined()[0], before)}
    norms = ("input_layernorm", "post_attention_layernorm")
    expected = {f"model.layers.{index}.{norm}" for index in (0, 1) for norm in norms}
    assert names == expected | set(fam.pruned_names("llama"))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_compensating_changes_the_weights_but_not_the_sparsity(family: str) -> None:
    tokens = text(40)
    plain = pruned(family, tokens)
    model, step = compensated(family, tokens, **LONG)
    prefix = f"{fam.FAMILIES[family].blocks}."
    # block 0 is given the dense stream: it is left alone
    names = fam.changed(model, fam.snapshot(plain))
    assert names and all(name.startswith(f"{prefix}1.") for name in names)
    (report,) = step.reports
    assert report.block == 1 and report.loss_after < 0.9 * report.loss_before
    for name, gone in zeros(plain, family).items():
        assert zeros(model, family)[name].sum() == gone.sum(), name
    # before: the dense block on the stream that the pruned block 0 gives, here by a plain pass
    mixed, dense, judge = copy.deepcopy(plain), fam.build(family), tokens[-4:]
    mixed.get_submodule(f"{prefix}1").load_state_dict(
        dense.get_submodule(f"{prefix}1").state_dict()
    )
    outputs = []
    for each in (mixed, dense):
        each.get_submodule(f"{prefix}1").register_forward_hook(
            lambda _block, _args, out: outputs.append(out[0] if isinstance(out, tuple) else out)
        )
        hidden(each, judge)
    assert report.loss_before == pytest.approx(loss_by_hand(*outputs), rel=1e-3)


def test_both_steps_share_one_dense_stream_and_do_better_than_none() -> None:
    model, tokens, options = fam.build(), text(40), {**STEP, **LONG}
    compensate = Compensate(model, tokens, **options)
    refine = Refine(model, tokens, dense=compensate.dense, **options)
    assert refine.dense is compensate.dense
    hooks = dict(before_block=compensate.before, after_block=refine.after)
    report = prune_model(model, tokens, **PLAIN, **hooks)
    # Refine's own `before` has then nothing left to do
    again = fam.build()
    first = Compensate(again, tokens, **options)
    second = Refine(again, tokens, dense=first.dense, **options)
    every = lambda *args: (first.before(*args), second.before(*args))  # noqa: E731
    prune_model(again, tokens, **PLAIN, before_block=every, after_block=second.after)
    assert not fam.changed(again, fam.snapshot(model))
    assert report.sparsity == pytest.approx(0.6, abs=0.02)
    assert [r.block for r in compensate.reports] == [1]
    assert [r.block for r in refine.reports] == [0, 1]
    assert compensate.dense is None and refine.dense is None
    judge = tokens[-4:]
    ends = [hidden(m, judge)[-1] for m in (fam.build(), pruned("llama", tokens), model)]
    assert loss_by_hand(ends[2], ends[0]) < 0.85 * loss_by_hand(ends[1], ends[0])


# ---------------------------------------------------------------- never worse, always the same


@pytest.mark.parametrize("make", [refined, compensated])
def test_what_does_not_help_is_undone(make: object) -> None:
    # one rate, so that no probe avoids it
    model, step = make(rates=[30.0])
    assert not fam.changed(model, fam.snapshot(pruned()))
    for report in step.reports:
        assert not report.improved and report.loss_after == report.loss_before


def test_held_out_sequences_are_never_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, descend = [], BlockFit.descend

    def note(self: BlockFit, pairs: list, rate: float) -> None:
        seen.append([rows.clone() for rows, _ in pairs])
        descend(self, pairs, rate)

    monkeypatch.setattr(BlockFit, "descend", note)
    tokens = text(12)
    refined(tokens=tokens, held_out=3, passes=2)
    # of each block: two probes, and two passes
    assert [len(pairs) for pairs in seen] == 2 * [8, 8, 18]
    entering = hidden(fam.build(), tokens)[0]
    for rows, stream in zip(seen[2], [*entering[:9], *entering[:9]], strict=True):
        assert torch.allclose(rows[0], stream)


def test_the_probe_chooses_the_rate_that_is_best_on_held_out_text() -> None:
    _, step = refined(rates=[1e-7, 3e-3, 30.0])
    assert {report.rate for report in step.reports} == {3e-3}
    block, pairs = Toy(), toy_pairs()
    with trained(block, find_layers(block)) as weights:
        fit, start = BlockFit("toy", block, Call((), {}), weights, "float32"), weights.snapshot()
        # one that overflows is only a rate that was not chosen
        assert fit.best_rate([math.inf, 1e-3], start, pairs, pairs) == 1e-3
        for value, old in zip(weights.snapshot(), start, strict=True):
            assert torch.equal(value, old)
        with pytest.raises(NonFinite, match="toy diverges"):
            fit.best_rate([math.inf, math.inf], start, pairs, pairs)


@pytest.mark.parametrize("make", [refined, compensated])
def test_the_same_call_gives_the_same_bits(make: object) -> None:
    (first, one), (second, other) = make(), make()
    assert not fam.changed(first, fam.snapshot(second))
    reports = [[{**row, "seconds": 0} for row in s.to_dict()["blocks"]] for s in (one, other)]
    assert reports[0] == reports[1]
    json.dumps(one.to_dict(), allow_nan=False)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("step", [Refine, Compensate])
@pytest.mark.parametrize(
    ("error", "word", "options"),
    [
        (BadParameter, "held_out", dict(held_out=6)),
        (BadParameter, "held_out", dict(held_out=0)),
        (BadParameter, "passes", dict(passes=0)),
        (BadParameter, "rates", dict(rates=[])),
        (BadParameter, "rates", dict(rates=1e-3)),
        (BadParameter, "rates", dict(rates=["1e-3"])),
        (BadParameter, "precision", dict(precision="float16")),
    ],
)
def test_bad_options(step: type, error: type, word: str, options: dict, one_line_error) -> None:
    with one_line_error(error, word):
        step(fam.build(), text(6), **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused_before_anything_changes(dtype: torch.dtype) -> None:
    with pytest.raises(BadParameter, match='load the model with dtype="float32"'):
        Refine(fam.build().to(dtype), text())


def test_hooks_that_do_not_fit_are_refused(one_line_error) -> None:
    model, tokens = fam.build(), text()
    refine = Refine(model, tokens, **STEP)
    with one_line_error(BadParameter, "before_block=refine.before"):
        prune_model(model, tokens, **PLAIN, after_block=refine.after)
    other = fam.build()
    with one_line_error(BadParameter, "another model or other tokens"):
        prune_model(other, tokens, **PLAIN, before_block=refine.before)
    with one_line_error(BadParameter, "another model or other tokens"):
        prune_model(other, tokens[:8], **PLAIN, before_block=Compensate(other, tokens).before)
    with one_line_error(BadParameter, "another model"):
        Refine(other, tokens, dense=DenseStream(fam.build(), tokens))
    _, used = refined()
    with one_line_error(BadParameter, "has been used"):
        prune_model(other, tokens, **PLAIN, before_block=used.before)


def test_a_step_whose_run_was_stopped_is_not_used_again(one_line_error) -> None:
    model, tokens = fam.build(), text()
    step = Refine(model, tokens, **STEP)

    def stop(done: int, total: int, name: str) -> None:
        if name.startswith("block 1"):
            raise KeyboardInterrupt

    hooks = dict(before_block=step.before, after_block=step.after)
    with pytest.raises(KeyboardInterrupt):
        prune_model(model, tokens, **PLAIN, **hooks, progress=stop)
    with one_line_error(BadParameter, "has been used"):
        prune_model(model, tokens, **PLAIN, **hooks, allow_pruned=True)


def test_nan_names_the_block_and_leaves_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = fam.build(), text()
    step = Compensate(model, tokens, **STEP)
    before = fam.snapshot(model)
    monkeypatch.setattr(blocks, "rate_at", lambda *_: math.inf)
    with pytest.raises(HelpersError, match="block 1 diverges") as caught:
        prune_model(model, tokens, **PLAIN, before_block=step.before)
    assert isinstance(caught.value, NonFinite)
    assert all(".layers.0." in name for name in fam.changed(model, before))
    step = Compensate(other := fam.build(), tokens, **{**STEP, "rates": [1.0]})
    with pytest.raises(NonFinite, match="training block 1 at rate 1"):
        prune_model(other, tokens, **PLAIN, before_block=step.before)
    assert all(".layers.0." in name for name in fam.changed(other, before))
    # the loss is NaN before any training
    other = fam.build()
    step = Refine(other, tokens, **STEP)
    step.dense.stream = torch.full((*tokens.shape, 32), math.nan)
    with pytest.raises(NonFinite, match="loss of block 1"):
        step.fit(1, other.model.layers[1], torch.ones(*tokens.shape, 32))
