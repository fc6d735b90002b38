"""Explorers of layers, masks and text: drive the controls as a user would, read the picture."""

import html
import re
import threading

import pytest
import torch
from layers import layer

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
from helpers.explore.layer import LayerProblem
from helpers.gram import relative_error
from helpers.models import find_blocks
from helpers.studies import stream_norms


@pytest.fixture(scope="module")
def problem():
    inputs, weight = layer(24, 16, 200)
    return weight, gram_of(inputs)


@pytest.fixture(scope="module")
def tiny():
    model, tokenizer = load_model("tiny", device="cpu")
    tokens = calibration_tokens("embedded", tokenizer, sequences=3, length=24)
    return model, tokenizer, tokens


def change(explorer, **values):
    """Set controls and wait for the picture."""
    for name, value in values.items():
        explorer.controls[name].value = value
    explorer.worker.wait(30)
    assert explorer.worker.message.value == ""


def line(explorer, column, number=0):
    """The heights of a line in one of the picture's plots."""
    lines = explorer.figure.axes[column].get_lines()
    return list(lines[number].get_ydata())


def mask_drawn(explorer):
    """The numbers of the mask's picture: colours by weight."""
    (image,) = explorer.figure.axes[2].get_images()
    return torch.tensor(image.get_array().data)


# --- the solve -----------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["one-shot", "paper", "released"])
def test_layer_explorer_shows_what_the_method_does(problem, schedule):
    weight, gram = problem
    explorer = layer_solve_explorer({"layer": problem}, sparsity=0.5)
    change(explorer, schedule=schedule)
    if schedule == "one-shot":
        solved = METHODS["admm1"](weight, gram, sparsity=0.5)
    else:
        solved = METHODS["admm-grad"](weight, gram, sparsity=0.5, schedule=schedule)
    assert line(explorer, 0)[-1] == pytest.approx(solved.error, rel=1e-4)
    notes = [text.get_text() for text in explorer.figure.axes[0].texts]
    assert ("more is pruned\nat each step" in notes) == (schedule == "paper")
    assert torch.equal(mask_drawn(explorer).bool(), solved.keep)
    errors = [
        relative_error(weight[[output]], solved.weight[[output]], gram)
        for output in range(len(weight))
    ]
    expected = sorted(errors, reverse=True)
    assert line(explorer, 1, -1) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("damping", [0.0, 0.01, 0.1])
@pytest.mark.parametrize("rho", [0.01, 1.0, 100.0])
def test_the_optimum_is_exact_however_far_admm_is_from_it(problem, rho, damping):
    weight, gram = problem
    explorer = layer_solve_explorer(
        {"layer": problem},
        sparsity=0.5,
        rho=rho,
        damping=damping,
        iterations=3,
    )
    _, texts = explorer.figure.axes[0].get_legend_handles_labels()
    drawn = dict(text.split(": ") for text in texts if ": " in text)
    keep = METHODS["admm1"](weight, gram, sparsity=0.5).keep
    optimum = exact_least_squares(weight, gram, keep, damping=damping)
    expected = {"optimum of this mask": optimum, "no update": weight * keep}
    for label, other in expected.items():
        error = relative_error(weight, other, gram)
        assert float(drawn[label]) == pytest.approx(error, abs=6e-5)


def test_the_list_has_the_layers_of_a_block(tiny):
    model, _, tokens = tiny
    problems = layer_problems(model, tokens, 1, ["mlp.up_proj", "mlp.down_proj"])
    explorer = layer_solve_explorer(problems, layer="mlp.down_proj")
    for name in ("mlp.down_proj", "mlp.up_proj"):
        change(explorer, layer=name)
        solved = METHODS["admm1"](*problems[name], sparsity=0.6)
        assert explorer.figure.axes[0].get_title().startswith(name)
        assert line(explorer, 0)[-1] == pytest.approx(solved.error, rel=1e-3)


def test_of_a_large_layer_the_first_outputs_are_solved_alone(monkeypatch, problem):
    weight, gram = problem
    monkeypatch.setattr("helpers.explore.layer.LEAST_OUTPUTS", 4)
    monkeypatch.setattr("helpers.explore.layer.MOST_MULTIPLICATIONS", 5 * 16**2)
    part = LayerProblem("layer", weight, gram)
    assert torch.equal(part.weight, weight[:5])
    assert "first 5 of 24" in part.title


# --- the mask ------------------------------------------------------------------------------


def test_scrubbing_shows_each_iterations_mask_and_solves_nothing(problem, monkeypatch):
    weight, gram = problem
    explorer = mask_schedule_explorer({"layer": problem}, sparsity=0.6)
    change(explorer)
    masks = []

    def trace(_iteration, _weight, keep):
        masks.append(keep.clone())

    METHODS["admm-grad"](weight, gram, sparsity=0.6, trace=trace)
    one_shot = METHODS["admm1"](weight, gram, sparsity=0.6).keep
    monkeypatch.setattr("helpers.explore.layer.METHODS", None)
    for iteration in (20, 1, 8):
        change(explorer, iteration=iteration)
        colours = 2 * masks[iteration - 1].int() + one_shot.int()
        assert torch.equal(mask_drawn(explorer).int(), colours)


def test_a_pattern_decides_sparsity_and_its_groups_are_counted(problem):
    explorer = mask_schedule_explorer({"layer": problem}, sparsity=0.7)
    change(explorer, pattern="2:4")
    assert explorer.controls["sparsity"].disabled
    keep = mask_drawn(explorer) >= 2
    kept = keep.unflatten(1, (-1, 4)).sum(-1)
    assert (kept == 2).all()
    assert "100.0 % of the groups of 4 keep exactly 2" in explorer.view.caption


# --- the calibration text ----------------------------------------------------------------


def test_norms_are_those_of_a_replay(tiny):
    model, _, tokens = tiny
    norms = stream_norms(model, tokens)
    stream = embed(model, tokens, 3)
    calls = record_calls(model, tokens)
    assert norms.shape == (3, len(calls) + 1, 24)
    expected = [stream.norm(dim=-1)]
    for call, block in zip(calls, find_blocks(model), strict=True):
        advance(block, stream, call, 3, "block")
        expected.append(stream.norm(dim=-1))
    torch.testing.assert_close(norms, torch.stack(expected, 1))


def test_another_thread_may_run_the_model_and_a_pass_can_be_ended(tiny):
    model, _, tokens = tiny
    expected = stream_norms(model, tokens)

    def progress(done, _total, _name):
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


def test_text_is_escaped_and_stands_out_by_more_than_colour():
    texts = ["<script>", " a", "&", "\n\n", " ", ""]
    markup = text_html(texts, [1.0, 100.0, 3.0, 1, 1, 1], [1])
    assert "<script>" not in markup
    plain = html.unescape(re.sub(r"<sup>1</sup>|<[^>]*>", "", markup))
    assert plain.endswith("<script> a&↵↵\n␣∅")
    largest = re.findall(r"<span.*?</span>", markup)[1]
    for part in ("bold", "underline", "<sup>1</sup>", "100 × median"):
        assert part in largest
    numbers = [1.0, 9.0, 4.0]
    table = table_html(["a", "<b>", " c"], numbers, numbers, [1])
    assert "a[&lt;b&gt;] c" in table


def test_controls_change_text_table_and_picture(tiny, monkeypatch):
    model, _, tokens = tiny
    norms = stream_norms(model, tokens)
    explorer = calibration_explorer(*tiny, block=1)
    for name in ("sequence", "block"):
        before = explorer.still.data
        explorer.controls[name].value += 1
        assert explorer.still.data != before
        # a sequence is run once
        monkeypatch.setattr("helpers.explore.calibration.stream_norms", None)
    chosen = norms[1, 2]
    row = r"<tr>\s*<td>\d+</td>\s*<td>(\d+)</td>"
    positions = re.findall(row, explorer.below.value)
    largest = chosen.argsort(descending=True)[:8]
    assert positions == list(map(str, largest.tolist()))
    assert line(explorer, 0) == pytest.approx(chosen.tolist())
    assert line(explorer, 1) == pytest.approx(norms[1].amax(-1).tolist())
