"""Explorers of layers, masks and text: drive the controls as a user would, read the picture."""

from __future__ import annotations

import html
import re
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import METHODS, calibration_tokens, gram_of, layer_problems, load_model
from helpers.admm import exact_least_squares
from helpers.blocks import advance, embed, record_calls
from helpers.errors import Stopped
from helpers.explore import (
    calibration_explorer,
    layer_solve_explorer,
    mask_schedule_explorer,
)
from helpers.explore.calibration import table_html, text_html
from helpers.explore.controls import Explorer
from helpers.explore.source import LayerOutputs, ModelLayers
from helpers.gram import Gram, relative_error
from helpers.models import find_blocks, find_layers, read_weight
from helpers.studies import stream_norms

Problem = tuple[Tensor, Tensor]
Loaded = tuple[nn.Module, Any, Tensor]


@pytest.fixture(scope="module")
def problem() -> Problem:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(16, 16, generator=generator)
    inputs = torch.randn(200, 16, generator=generator) @ mixing
    return torch.randn(24, 16, generator=generator), gram_of(inputs)


@pytest.fixture(scope="module")
def tiny() -> Loaded:
    model, tokenizer = load_model("tiny", device="cpu")
    return (
        model,
        tokenizer,
        calibration_tokens("embedded", tokenizer, sequences=3, length=24),
    )


class OneLayer:
    """Instead of the layers of a model: one, of which weight and gram are given."""

    def __init__(self, weight: Tensor, gram: Tensor) -> None:
        self.part = LayerOutputs("the layer", weight, Gram.of(gram))

    def controls(self, _block: None, _layer: None) -> dict[str, Any]:
        return {}

    def get(self, _progress: Any) -> LayerOutputs:
        return self.part


@pytest.fixture(autouse=True)
def one_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Explorers take a weight and a gram where they take a model and its tokens."""
    for name in ("layer", "mask"):
        monkeypatch.setattr(f"helpers.explore.{name}.ModelLayers", OneLayer)


def change(explorer: Explorer, **values: Any) -> bytes:
    """The picture after the controls were set."""
    for name, value in values.items():
        explorer.controls[name].value = value
    explorer.worker.wait(30)
    assert explorer.worker.message.value == ""
    return explorer.png


def mask_drawn(explorer: Explorer) -> Tensor:
    """The numbers of the mask's picture: colours by weight."""
    return torch.tensor(explorer.figure.axes[2].get_images()[0].get_array().data)


# --- the solve -----------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["one-shot", "paper", "released"])
def test_layer_explorer_shows_what_the_method_does(
    problem: Problem, schedule: str
) -> None:
    weight, gram = problem
    explorer = layer_solve_explorer(weight, gram, sparsity=0.5)
    change(explorer, schedule=schedule)
    left, middle, right = explorer.figure.axes
    options = {} if schedule == "one-shot" else {"schedule": schedule, "mask_steps": 15}
    name = "admm1" if schedule == "one-shot" else "admm-grad"
    solved = METHODS[name](weight, gram, sparsity=0.5, **options)
    assert left.get_lines()[0].get_ydata()[-1] == pytest.approx(solved.error, rel=1e-4)
    assert torch.equal(
        torch.tensor(right.get_images()[0].get_array().data).bool(), solved.keep
    )
    alone = [relative_error(weight[[i]], solved.weight[[i]], gram) for i in range(24)]
    drawn = list(middle.get_lines()[-1].get_ydata())
    assert drawn == pytest.approx(sorted(alone, reverse=True), rel=1e-3)


@pytest.mark.parametrize("damping", [0.0, 0.01, 0.1])
@pytest.mark.parametrize("rho", [0.01, 1.0, 100.0])
def test_the_optimum_is_exact_however_far_admm_is_from_it(
    problem: Problem, rho: float, damping: float
) -> None:
    weight, gram = problem
    settings = dict(rho=rho, damping=damping, iterations=3)
    explorer = layer_solve_explorer(weight, gram, sparsity=0.5, **settings)
    _, texts = explorer.figure.axes[0].get_legend_handles_labels()
    lines = dict(text.split(": ") for text in texts if ": " in text)
    keep = METHODS["admm1"](weight, gram, sparsity=0.5).keep
    exact = exact_least_squares(weight, gram, keep, damping=damping)
    for line, other in {
        "optimum of this mask": exact,
        "no update": weight * keep,
    }.items():
        assert float(lines[line]) == pytest.approx(
            relative_error(weight, other, gram), abs=6e-5
        )


# --- the mask ------------------------------------------------------------------------------


def test_scrubbing_shows_each_iterations_mask_and_solves_nothing(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, gram = problem
    explorer = mask_schedule_explorer(weight, gram, sparsity=0.6)
    change(explorer)
    masks: list[Tensor] = []
    trace = lambda _i, _w, keep: masks.append(keep.clone())  # noqa: E731
    METHODS["admm-grad"](weight, gram, sparsity=0.6, trace=trace)
    one_shot = METHODS["admm1"](weight, gram, sparsity=0.6).keep
    monkeypatch.setattr("helpers.explore.source.METHODS", None)
    for iteration in (20, 1, 8):
        change(explorer, iteration=iteration)
        keep = masks[iteration - 1]
        assert torch.equal(mask_drawn(explorer).int(), 2 * keep.int() + one_shot.int())


def test_a_pattern_decides_sparsity_and_its_groups_are_counted(
    problem: Problem,
) -> None:
    explorer = mask_schedule_explorer(*problem, sparsity=0.7)
    change(explorer, pattern="2:4")
    assert explorer.controls["sparsity"].disabled
    assert ((mask_drawn(explorer) >= 2).unflatten(1, (-1, 4)).sum(-1) == 2).all()
    assert "100.0 % of the groups of 4 keep exactly 2" in explorer.view.caption


# --- layers of a model ---------------------------------------------------------------------


def collect(source: ModelLayers, block: int, layer: str = "mlp.up_proj") -> list[str]:
    """The steps that it takes to get a layer, whose gram must be that of `layer_problems`."""
    steps: list[str] = []
    part = source.get(lambda _done, _total, name: steps.append(name), block, layer)
    weight, gram = layer_problems(source.model, source.tokens, block, [layer])[layer]
    assert torch.equal(part.weight, weight)
    torch.testing.assert_close(part.gram.matrix, gram, rtol=1e-4, atol=1e-4)
    return steps


def test_grams_are_the_models_and_a_later_block_goes_on(tiny: Loaded) -> None:
    source = ModelLayers(tiny[0], tiny[2])

    def stop(_done: int, _total: int, name: str) -> None:
        if name == "grams of block 1":
            raise Stopped("stopped")

    assert collect(source, 0) == ["embedding the text", "grams of block 0"]
    assert collect(source, 0, "mlp.down_proj") == []
    with pytest.raises(Stopped):
        source.get(stop, 1, "mlp.up_proj")
    assert collect(source, 1) == ["grams of block 1"], "it goes on where it was stopped"
    assert collect(source, 0) == ["embedding the text", "grams of block 0"]


def test_a_model_may_change_and_is_left_alone_meanwhile(tiny: Loaded) -> None:
    model, tokens = load_model("tiny", device="cpu")[0].train(), tiny[2]
    source = ModelLayers(model, tokens)

    def undisturbed(*_step: Any) -> None:
        for module in model.modules():
            assert module.training and not module._forward_pre_hooks

    source.get(undisturbed, 1, "mlp.up_proj")
    assert collect(source, 1) == []
    with torch.no_grad():
        read_weight(find_layers(find_blocks(model)[0])["mlp.down_proj"]).mul_(3)
    assert collect(source, 1)[0] == "embedding the text"


# --- the calibration text ----------------------------------------------------------------


def test_norms_are_those_of_a_replay(tiny: Loaded) -> None:
    model, _, tokens = tiny
    norms = stream_norms(model, tokens)
    stream, calls = embed(model, tokens, 3), record_calls(model, tokens)
    assert norms.shape == (3, len(calls) + 1, 24)
    for index, block in enumerate(find_blocks(model)):
        torch.testing.assert_close(norms[:, index], stream.norm(dim=-1))
        advance(block, stream, calls[index], 3, "block")
    torch.testing.assert_close(norms[:, -1], stream.norm(dim=-1))


def test_another_thread_may_run_the_model_and_a_pass_can_be_ended(tiny: Loaded) -> None:
    model, _, tokens = tiny
    expected = stream_norms(model, tokens)

    def progress(done: int, _total: int, _name: str) -> None:
        thread = threading.Thread(target=lambda: model(tokens[:, :5]))
        thread.start()
        thread.join()
        if done == last:
            raise Stopped("stopped")

    last = 100
    assert torch.equal(stream_norms(model, tokens, progress), expected)
    last = 4
    with pytest.raises(Stopped):
        stream_norms(model, tokens, progress)
    for module in model.modules():
        assert not module._forward_pre_hooks and not module._forward_hooks


def test_text_is_escaped_and_stands_out_by_more_than_colour() -> None:
    markup = text_html(
        ["<script>", " a", "&", "\n\n", " ", ""], [1.0, 100.0, 3.0, 1, 1, 1], [1]
    )
    assert "<script>" not in markup
    plain = html.unescape(re.sub(r"<sup>1</sup>|<[^>]*>", "", markup))
    assert plain.endswith("<script> a&↵↵\n␣∅")
    _, largest, *_ = re.findall(r"<span.*?</span>", markup)
    assert all(
        part in largest
        for part in ("bold", "underline", "<sup>1</sup>", "100 × median")
    )
    assert "a[&lt;b&gt;] c" in table_html(
        ["a", "<b>", " c"], [1.0, 9.0, 4.0], [1, 3.0, 4], [1]
    )


def test_controls_change_text_table_and_picture(
    tiny: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = stream_norms(tiny[0], tiny[2])
    explorer = calibration_explorer(*tiny, block=1)
    for name in ("sequence", "block"):
        before = explorer.still.data
        explorer.controls[name].value += 1
        assert explorer.still.data != before
        # a sequence is run once
        monkeypatch.setattr(
            "helpers.explore.calibration.stream_norms", lambda *_: pytest.fail("")
        )
    order = norms[1, 2].argsort(descending=True).tolist()
    cells = re.findall(r"<tr>\s*<td>(\d+)</td>\s*<td>(\d+)</td>", explorer.below.value)
    assert cells == [(str(rank), str(at)) for rank, at in enumerate(order[:8], 1)]
    here, largest = (ax.get_lines()[0].get_ydata() for ax in explorer.figure.axes)
    assert list(here) == pytest.approx(norms[1, 2].tolist())
    assert list(largest) == pytest.approx(norms[1].max(-1).values.tolist())
