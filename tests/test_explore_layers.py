"""Explorers of layers, masks and text: drive the controls as a user would, read the picture."""

import copy
import html
import re
import threading

import pytest
import torch
from layers import layer

from helpers import METHODS, calibration_tokens, gram_of, load_model
from helpers.errors import Stopped
from helpers.explore import (
    calibration_explorer,
    layer_solve_explorer,
    mask_schedule_explorer,
)
from helpers.explore.calibration import table_html, text_html
from helpers.explore.layer import LayerProblem
from helpers.model.hidden_states import stream_norms
from helpers.paper.admm import exact_least_squares
from helpers.paper.gram import relative_error

INPUTS, WEIGHT = layer(24, 16, 200)
PROBLEM = WEIGHT, gram_of(INPUTS)
PROBLEMS = {"layer": PROBLEM, "other": (WEIGHT[:8], PROBLEM[1])}


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


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("schedule", ["one-shot", "paper", "released"])
def test_layer_explorer_shows_what_the_method_does(name, schedule):
    explorer = layer_solve_explorer(PROBLEMS, sparsity=0.5)
    change(explorer, schedule=schedule, layer=name)
    weight, gram = PROBLEMS[name]
    options = {"sparsity": 0.5, "schedule": schedule}
    if schedule == "one-shot":
        options = {"sparsity": 0.5, "mask_steps": 0}
    solved = METHODS["admm-grad"](weight, gram, **options)
    assert explorer.figure.axes[0].get_title().startswith(name)
    assert line(explorer, 0)[-1] == pytest.approx(solved.error, rel=1e-4)
    assert torch.equal(mask_drawn(explorer).bool(), solved.keep)
    outputs = zip(weight.split(1), solved.weight.split(1), strict=True)
    errors = [relative_error(*both, gram) for both in outputs]
    assert line(explorer, 1, -1) == pytest.approx(sorted(errors)[::-1], rel=1e-3)


@pytest.mark.parametrize("damping", [0.0, 0.01, 0.1])
@pytest.mark.parametrize("rho", [0.01, 100.0])
def test_the_optimum_is_exact_however_far_admm_is_from_it(rho, damping):
    options = dict(rho=rho, damping=damping, iterations=3)
    explorer = layer_solve_explorer({"layer": PROBLEM}, sparsity=0.5, **options)
    _, texts = explorer.figure.axes[0].get_legend_handles_labels()
    drawn = dict(text.split(": ") for text in texts if ": " in text)
    keep = METHODS["wanda"](*PROBLEM, sparsity=0.5, budget="matrix").keep
    optimum = exact_least_squares(*PROBLEM, keep, damping=damping)
    for label, new in ("optimum of this mask", optimum), ("no update", WEIGHT * keep):
        error = relative_error(WEIGHT, new, PROBLEM[1])
        assert float(drawn[label]) == pytest.approx(error, abs=6e-5)


def test_of_a_large_layer_the_first_outputs_are_solved_alone(monkeypatch):
    monkeypatch.setattr("helpers.explore.layer.LEAST_OUTPUTS", 4)
    monkeypatch.setattr("helpers.explore.layer.MOST_MULTIPLICATIONS", 5 * 16**2)
    part = LayerProblem("layer", *PROBLEM)
    assert torch.equal(part.weight, WEIGHT[:5])
    assert "5 of its 24" in part.title


# --- the mask ------------------------------------------------------------------------------


def test_scrubbing_shows_each_iterations_mask_and_solves_nothing(monkeypatch):
    explorer = mask_schedule_explorer({"layer": PROBLEM}, sparsity=0.6)
    change(explorer)
    masks = []

    def trace(_iteration, _weight, keep):
        masks.append(keep.int())

    METHODS["admm-grad"](*PROBLEM, sparsity=0.6, trace=trace)
    one_shot = METHODS["admm1"](*PROBLEM, sparsity=0.6).keep
    monkeypatch.setattr("helpers.explore.layer.METHODS", None)
    for iteration in (20, 1, 8):
        change(explorer, iteration=iteration)
        colours = 2 * masks[iteration - 1] + one_shot
        assert torch.equal(mask_drawn(explorer).int(), colours)


def test_a_pattern_decides_sparsity_and_its_groups_are_counted():
    explorer = mask_schedule_explorer({"layer": PROBLEM}, sparsity=0.7)
    change(explorer, pattern="2:4")
    assert explorer.controls["sparsity"].disabled
    keep = mask_drawn(explorer) >= 2
    assert (keep.unflatten(1, (-1, 4)).sum(-1) == 2).all()
    assert "100.0 %" in explorer.view.caption


# --- the calibration text ----------------------------------------------------------------


def test_norms_are_the_models_own(tiny):
    model, tokens = copy.deepcopy(tiny[0]), tiny[2]
    norms = stream_norms(model, tokens)
    model.model.norm = torch.nn.Identity()
    states = model(tokens, output_hidden_states=True).hidden_states
    torch.testing.assert_close(norms, torch.stack(states, 1).norm(dim=-1))


def test_another_thread_may_run_the_model_and_a_pass_can_be_ended(tiny):
    model, _, tokens = tiny
    expected = stream_norms(model, tokens)
    last = 100

    def progress(done, _total, _name):
        thread = threading.Thread(target=lambda: model(tokens[:, :5]))
        thread.start()
        thread.join()
        if done == last:
            raise Stopped("stopped")

    assert torch.equal(stream_norms(model, tokens, progress), expected)
    last = 4
    with pytest.raises(Stopped):
        stream_norms(model, tokens, progress)
    for module in model.modules():
        assert not module._forward_pre_hooks and not module._forward_hooks


def test_text_is_escaped():
    numbers = [1.0, 100.0, 3.0, 1, 1, 1]
    markup = text_html(["<script>", " a", "&", "\n\n", " ", ""], numbers, [1])
    assert "<script>" not in markup
    plain = html.unescape(re.sub(r"<sup>1</sup>|<[^>]*>", "", markup))
    assert plain.endswith("<script> a&↵↵\n␣∅")
    assert "100 × median" in re.findall(r"<span.*?</span>", markup)[1]
    table = table_html(["a", "<b>", " c"], numbers[:3], numbers[:3], [1])
    assert "a[&lt;b&gt;] c" in table


def test_controls_change_text_table_and_picture(tiny, monkeypatch):
    model, _, tokens = tiny
    norms = stream_norms(model, tokens)[1]
    explorer = calibration_explorer(*tiny, block=1)
    for name in ("sequence", "block"):
        before = explorer.still.data
        explorer.controls[name].value += 1
        assert explorer.still.data != before
        # a sequence is run once
        monkeypatch.setattr("helpers.explore.calibration.stream_norms", None)
    row = r"<tr>\s*<td>\d+</td>\s*<td>(\d+)</td>"
    positions = re.findall(row, explorer.below.value)
    assert positions == [str(int(place)) for place in norms[2].topk(8).indices]
    assert line(explorer, 0) == pytest.approx(norms[2].tolist())
    assert line(explorer, 1) == pytest.approx(norms.amax(-1).tolist())
