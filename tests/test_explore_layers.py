"""Explorers of layers and masks: drive the controls as a reader would, see the picture change."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets
import pytest
import torch
from torch import Tensor, nn

from helpers import METHODS, calibration_tokens, gram_of, layer_gram, load_model, load_streamed
from helpers.admm import admm_grad, exact_least_squares
from helpers.errors import HelpersError, Stopped
from helpers.explore import Explorer, layer_solve_explorer, mask_schedule_explorer
from helpers.explore.layer import TOLERANCE, certified_optimum
from helpers.explore.source import LayerOutputs, ModelLayers
from helpers.gram import relative_error
from helpers.masks import top_k
from helpers.models import find_blocks, find_layers, read_weight

Problem = tuple[Tensor, Tensor]


def quiet(*_steps: Any) -> None:
    """Progress that is not shown."""


@pytest.fixture(scope="module")
def problem() -> Problem:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(16, 16, generator=generator)
    inputs = torch.randn(200, 16, generator=generator) @ mixing
    return torch.randn(24, 16, generator=generator), gram_of(inputs)


@pytest.fixture(scope="module")
def tiny() -> tuple[nn.Module, Tensor]:
    model, tokenizer = load_model("tiny", device="cpu")
    return model, calibration_tokens("embedded", tokenizer, sequences=4, length=32)


def change(explorer: Explorer, **values: Any) -> bytes:
    """The picture after the controls were set."""
    for name, value in values.items():
        explorer.controls[name].value = value
    explorer.wait(30)
    assert explorer.message.value == ""
    return explorer.png


def mask_drawn(explorer: Explorer) -> Tensor:
    """The numbers of the mask's picture: colours by weight."""
    return torch.tensor(explorer.figure.axes[2].get_images()[0].get_array().data)


# --- the solve -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, changes",
    [
        (
            layer_solve_explorer,
            {"rho": 10.0, "iterations": 5, "sparsity": 0.8, "schedule": "paper"},
        ),
        (
            mask_schedule_explorer,
            {"iteration": 7, "schedule": "released", "mask_steps": 4, "sparsity": 0.3}
            | {"pattern": "4:8"},
        ),
    ],
)
def test_the_picture_follows_every_control(
    problem: Problem, make: Callable, changes: dict[str, Any]
) -> None:
    explorer = make(*problem)
    before = change(explorer)
    for name, value in changes.items():
        after = change(explorer, **{name: value})
        assert after.startswith(b"\x89PNG") and after != before, name
        before = after


@pytest.mark.parametrize("schedule", ["one-shot", "paper", "released"])
def test_layer_explorer_shows_what_the_method_does(problem: Problem, schedule: str) -> None:
    weight, gram = problem
    left, middle, right = layer_solve_explorer(
        weight, gram, sparsity=0.5, schedule=schedule
    ).figure.axes
    options = {} if schedule == "one-shot" else {"schedule": schedule, "mask_steps": 15}
    name = "admm1" if schedule == "one-shot" else "admm-grad"
    solved = METHODS[name](weight, gram, sparsity=0.5, **options)
    assert left.get_lines()[0].get_ydata()[-1] == pytest.approx(solved.error, rel=1e-4)
    assert torch.equal(torch.tensor(right.get_images()[0].get_array().data).bool(), solved.keep)
    exact = exact_least_squares(weight, gram, solved.keep, damping=0.1)
    lines = dict(text.get_text().split(": ") for text in left.texts if ": " in text.get_text())
    for line, other in {"optimum of this mask": exact, "no update": weight * solved.keep}.items():
        assert float(lines[line]) == pytest.approx(relative_error(weight, other, gram), abs=6e-5)
    shades = [patch.get_x() + patch.get_width() for patch in left.patches]
    assert shades == ([] if schedule == "one-shot" else [15.5])  # where the mask still changes
    alone = [relative_error(weight[[i]], solved.weight[[i]], gram) for i in range(24)]
    order = sorted(range(24), key=lambda i: -alone[i])
    assert middle.get_title() == f"hurt most: outputs {order[0]}, {order[1]}, {order[2]}"
    drawn = list(middle.get_lines()[-1].get_ydata())
    assert drawn == pytest.approx([alone[i] for i in order], rel=1e-3)


@pytest.mark.parametrize("sparsity", [0.1, 0.9])
@pytest.mark.parametrize("damping", [0.0, 0.01, 0.1])
def test_the_certificate_holds(problem: Problem, sparsity: float, damping: float) -> None:
    weight, gram = problem
    part, keep = LayerOutputs("", weight, gram, None), top_k(weight.abs(), sparsity)
    exact = exact_least_squares(weight.double(), gram, keep, damping=damping)
    best = relative_error(weight.double(), exact, gram)
    for start in (torch.zeros_like(weight), weight * keep, exact.float()):
        error, within = certified_optimum(part, keep, start, damping)
        assert within <= TOLERANCE and abs(error - best) <= (within + 1e-6) * error


def test_the_certificate_says_when_it_has_not_arrived(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("helpers.explore.layer.ITERATIONS", 1)
    weight, gram = problem
    part, keep = LayerOutputs("", weight, gram, None), top_k(weight.abs(), 0.6)
    error, within = certified_optimum(part, keep, torch.zeros_like(weight), 0.1)
    exact = exact_least_squares(weight, gram, keep, damping=0.1)
    best = relative_error(weight, exact, gram)
    assert within > TOLERANCE and abs(error - best) <= within * error
    explorer = layer_solve_explorer(weight, gram, rho=100.0, iterations=1)
    assert any("to within" in text.get_text() for text in explorer.figure.axes[0].texts)


# --- the mask ------------------------------------------------------------------------------


def test_scrubbing_shows_each_iterations_mask_and_solves_nothing(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, gram = problem
    explorer = mask_schedule_explorer(weight, gram, sparsity=0.6)
    explorer.wait(30)
    masks: list[Tensor] = []
    admm_grad(weight, gram, sparsity=0.6, trace=lambda _i, _w, keep: masks.append(keep.clone()))
    one_shot = METHODS["admm1"](weight, gram, sparsity=0.6).keep
    monkeypatch.setattr("helpers.explore.source.admm_grad", None)
    for iteration in (20, 1, 8):
        change(explorer, iteration=iteration)
        keep = masks[iteration - 1]
        assert torch.equal(mask_drawn(explorer).int(), 2 * keep.int() + one_shot.int())
        marker = explorer.figure.axes[0].get_lines()[-1]
        sparsity = 100 * (1 - keep.float().mean().item())
        assert marker.get_xdata()[0] == iteration
        assert marker.get_ydata()[0] == pytest.approx(sparsity, abs=1e-3)


def test_a_pattern_decides_sparsity_and_its_groups_are_counted(problem: Problem) -> None:
    explorer = mask_schedule_explorer(*problem, sparsity=0.7, pattern="2:4")
    assert explorer.controls["sparsity"].disabled
    assert ((mask_drawn(explorer) >= 2).unflatten(1, (-1, 4)).sum(-1) == 2).all()
    assert "100.0 % of the groups of 4 keep exactly 2" in explorer.view.caption
    change(explorer, iteration=1)
    assert "100.0 % of the groups of 4 keep exactly 2" not in explorer.view.caption
    change(explorer, pattern="unstructured", schedule="one-shot")
    assert not explorer.controls["sparsity"].disabled and explorer.controls["mask_steps"].disabled
    assert "0.0 % are removed" in explorer.view.caption
    change(explorer, schedule="paper", mask_steps=0)
    assert "0.0 % are removed" in explorer.view.caption, "no mask steps are one-shot"


def test_the_last_iteration_stays_the_last(problem: Problem) -> None:
    explorer = mask_schedule_explorer(*problem)
    boxes = [box for box in explorer.children if isinstance(box, ipywidgets.Box)]
    play = next(w for box in boxes for w in box.children if isinstance(w, ipywidgets.Play))
    assert (play.min, play.max, play.value) == (1, 20, 20)
    iteration = explorer.controls["iteration"]
    explorer.controls["mask_steps"].value = 25
    assert iteration.value == iteration.max == play.max == 30
    iteration.value = 3
    explorer.controls["mask_steps"].value = 8
    assert iteration.value == 3 and iteration.max == play.max == 13


# --- layers of a model ---------------------------------------------------------------------


def collect(source: ModelLayers, block: int, layer: str = "mlp.up_proj") -> list[str]:
    """The steps that it takes to get a layer, whose gram must be that of `layer_gram`."""
    steps: list[str] = []
    progress = lambda _done, _total, name: steps.append(name)  # noqa: E731
    found = source.get(progress, block, layer)
    weight, gram = layer_gram(source.model, source.tokens, block, layer)
    assert torch.equal(found.weight, weight)
    torch.testing.assert_close(found.gram, gram, rtol=1e-4, atol=1e-4)
    return steps


@pytest.mark.parametrize("streams", [1 << 20, 1])
def test_grams_are_the_models_and_nothing_is_run_twice(
    tiny: tuple[nn.Module, Tensor], streams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("helpers.explore.source.STREAM_BYTES", streams)
    source = ModelLayers(*tiny)

    def stop(_done: int, _total: int, name: str) -> None:
        if name.endswith("grams of block 1"):
            raise Stopped("stopped")

    assert collect(source, 0)[:2] == ["embedding the text", "grams of block 0"]
    assert collect(source, 0, "mlp.down_proj") == []
    with pytest.raises(Stopped):
        source.get(stop, 1, "mlp.up_proj")
    assert collect(source, 1)[0] == "grams of block 1", "it goes on where it was stopped"
    assert collect(source, 1, "self_attn.k_proj") == []
    # the way back: from a stream that was kept, or from the text where there was no memory for it
    first = "grams of block 0" if streams > 1 else "embedding the text"
    assert collect(source, 0)[0] == first


def test_a_model_may_change_and_be_run_meanwhile(tiny: tuple[nn.Module, Tensor]) -> None:
    model, tokens = load_model("tiny", device="cpu")[0].train(), tiny[1]
    source = ModelLayers(model, tokens)

    def meddle(*_step: Any) -> None:
        for module in model.modules():
            assert module.training and not module._forward_pre_hooks
        thread = threading.Thread(target=lambda: model(tokens[:, :8]))
        thread.start()
        thread.join()

    before = source.get(meddle, 1, "mlp.up_proj").gram
    torch.testing.assert_close(
        before, layer_gram(model, tokens, 1, "mlp.up_proj")[1], rtol=1e-4, atol=1e-4
    )
    with torch.no_grad():
        read_weight(find_layers(find_blocks(model)[0])["mlp.down_proj"]).mul_(3)
    assert collect(source, 1)[0] == "embedding the text"
    assert not torch.allclose(before, source.get(quiet, 1, "mlp.up_proj").gram, rtol=1e-2)


@pytest.mark.parametrize("make", [layer_solve_explorer, mask_schedule_explorer])
def test_block_and_layer_can_be_chosen(tiny: tuple[nn.Module, Tensor], make: Callable) -> None:
    explorer = make(*tiny, block=0, layer="mlp.up_proj", outputs=10)
    side = "left" if make is mask_schedule_explorer else "center"
    title = explorer.figure.axes[0].get_title(loc=side)
    assert "block 0 mlp.up_proj, first 10 of " in title
    assert len(mask_drawn(explorer)) == 10
    before = change(explorer)
    assert change(explorer, block=1, layer="self_attn.v_proj") != before
    title = explorer.figure.axes[0].get_title(loc=side)
    assert "block 1 self_attn.v_proj" in title


def test_a_name_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("helpers.explore.source.LENGTH", 16)
    monkeypatch.setattr("helpers.explore.source.SEQUENCES", 2)
    explorer = layer_solve_explorer("tiny")
    assert "block 1" in explorer.figure.axes[0].get_title()


def test_what_cannot_be_explored_is_refused(
    tiny: tuple[nn.Module, Tensor], problem: Problem, one_line_error: Callable, tmp_path: Path
) -> None:
    model, (weight, gram) = tiny[0], problem
    model.save_pretrained(tmp_path)
    load_model("tiny")[1].save_pretrained(tmp_path)
    streamed = load_streamed(tmp_path)[0]
    for given, settings, *words in (
        ((model,), {}, "tokens are missing"),
        ((weight,), {}, "weight and gram"),
        ((weight, gram[:5, :5]), {}, "16 inputs"),
        (tiny, {"block": 9}, "block 9", "0 to 1"),
        (tiny, {"layer": "up"}, "layer", "mlp.up_proj"),
        ((streamed, tiny[1]), {}, "block by block", "load_model"),
        (problem, {"sparsity": 0.99}, "0.05 to 0.95"),
        (problem, {"rho": 1e4}, "0.01 to 100"),
        (problem, {"iterations": 0}, "1 to 60"),
        (problem, {"schedule": "cubic"}, "one-shot"),
        (problem, {"outputs": 0}, "outputs"),
        (problem, {"damping": -1.0}, "damping"),
    ):
        with one_line_error(HelpersError, *words):
            layer_solve_explorer(*given, **settings)
