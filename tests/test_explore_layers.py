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


def quiet(*_steps: Any) -> None:
    """Progress that is not shown."""


@pytest.fixture(scope="module")
def problem() -> tuple[Tensor, Tensor]:
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
    return explorer.png


def errors_of(explorer: Explorer, panel: int = 0) -> list[float]:
    """The error curve that the picture shows."""
    return list(explorer.figure.axes[panel].get_lines()[0].get_ydata())


def line_of(explorer: Explorer, name: str) -> float:
    """The number that the picture writes on a horizontal line."""
    texts = [text.get_text() for text in explorer.figure.axes[0].texts]
    return float(next(text for text in texts if text.startswith(name)).split(": ")[1])


def kept(explorer: Explorer) -> float:
    """The fraction of dark cells in the mask that the picture shows."""
    return float(explorer.figure.axes[-1].get_images()[0].get_array().mean())


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
    problem: tuple[Tensor, Tensor], make: Callable, changes: dict[str, Any]
) -> None:
    explorer = make(*problem)
    before = change(explorer)
    for name, value in changes.items():
        after = change(explorer, **{name: value})
        assert after.startswith(b"\x89PNG") and after != before, name
        assert explorer.message.value == ""
        before = after


@pytest.mark.parametrize("schedule", ["one-shot", "paper", "released"])
def test_layer_explorer_shows_what_the_method_does(
    problem: tuple[Tensor, Tensor], schedule: str
) -> None:
    weight, gram = problem
    explorer = layer_solve_explorer(weight, gram, sparsity=0.5, schedule=schedule)
    options = {} if schedule == "one-shot" else {"schedule": schedule, "mask_steps": 15}
    name = "admm1" if schedule == "one-shot" else "admm-grad"
    solved = METHODS[name](weight, gram, sparsity=0.5, **options)
    assert errors_of(explorer)[-1] == pytest.approx(solved.error, rel=1e-4)
    assert kept(explorer) == pytest.approx(0.5, abs=0.01)
    exact = exact_least_squares(weight, gram, solved.keep, damping=0.1)
    best = relative_error(weight, exact, gram)
    assert line_of(explorer, "optimum") == pytest.approx(best, abs=6e-5)
    bare = relative_error(weight, weight * solved.keep, gram)
    assert line_of(explorer, "no update") == pytest.approx(bare, abs=6e-5)
    shades = [patch.get_x() + patch.get_width() for patch in explorer.figure.axes[0].patches]
    assert shades == ([] if schedule == "one-shot" else [15.5])  # where the mask still changes


def test_layer_explorer_names_the_outputs_that_are_hurt(problem: tuple[Tensor, Tensor]) -> None:
    weight, gram = problem
    explorer = layer_solve_explorer(weight, gram, sparsity=0.5)
    new = METHODS["admm1"](weight, gram, sparsity=0.5).weight
    alone = [relative_error(weight[i : i + 1], new[i : i + 1], gram) for i in range(24)]
    order = sorted(range(24), key=lambda i: -alone[i])
    panel = explorer.figure.axes[1]
    assert panel.get_title() == f"hurt most: outputs {order[0]}, {order[1]}, {order[2]}"
    drawn = panel.get_lines()[-1].get_ydata()
    assert list(drawn) == pytest.approx([alone[i] for i in order], rel=1e-3)
    part = layer_solve_explorer(*problem, outputs=10)
    assert "first 10 of 24 outputs" in part.figure.axes[0].get_title()
    assert part.figure.axes[2].get_images()[0].get_array().shape == (10, 16)


@pytest.mark.parametrize("sparsity", [0.1, 0.9])
@pytest.mark.parametrize("damping", [0.0, 0.01, 0.1])
def test_the_certificate_holds(
    problem: tuple[Tensor, Tensor], sparsity: float, damping: float
) -> None:
    weight, gram = problem
    part, keep = LayerOutputs("", weight, gram, None), top_k(weight.abs(), sparsity)
    exact = exact_least_squares(weight.double(), gram, keep, damping=damping)
    best = relative_error(weight.double(), exact, gram)
    for start in (torch.zeros_like(weight), weight * keep, exact.float()):
        error, within = certified_optimum(part, keep, start, damping)
        assert within <= TOLERANCE and abs(error - best) <= (within + 1e-6) * error


def test_the_certificate_says_when_it_has_not_arrived(
    problem: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("helpers.explore.layer.STEPS", (1,))
    weight, gram = problem
    part, keep = LayerOutputs("", weight, gram, None), top_k(weight.abs(), 0.6)
    error, within = certified_optimum(part, keep, torch.zeros_like(weight), 0.1)
    exact = exact_least_squares(weight, gram, keep, damping=0.1)
    best = relative_error(weight, exact, gram)
    assert within > TOLERANCE and abs(error - best) <= within * error
    explorer = layer_solve_explorer(weight, gram, rho=100.0, iterations=1)
    assert any("to within" in text.get_text() for text in explorer.figure.axes[0].texts)


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"sparsity": 0.99}, "0.05 to 0.95"),
        ({"rho": 1e4}, "0.01 to 100"),
        ({"iterations": 0}, "1 to 60"),
        ({"schedule": "cubic"}, "one-shot"),
        ({"outputs": 0}, "outputs"),
        ({"damping": -1.0}, "damping"),
    ],
)
def test_where_controls_cannot_start_is_refused(
    problem: tuple[Tensor, Tensor], settings: dict, word: str, one_line_error: Callable
) -> None:
    with one_line_error(HelpersError, word):
        layer_solve_explorer(*problem, **settings)


# --- the mask ------------------------------------------------------------------------------


def test_scrubbing_shows_each_iterations_mask_and_solves_nothing(
    problem: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, gram = problem
    explorer = mask_schedule_explorer(weight, gram, sparsity=0.6)
    explorer.wait(30)
    masks: list[Tensor] = []
    admm_grad(weight, gram, sparsity=0.6, trace=lambda _i, _w, keep: masks.append(keep.clone()))
    one_shot = METHODS["admm1"](weight, gram, sparsity=0.6).keep
    monkeypatch.setattr("helpers.explore.mask.admm_grad", lambda *_a, **_k: pytest.fail("solved"))
    for iteration in (20, 1, 8):
        change(explorer, iteration=iteration)
        assert explorer.message.value == ""
        drawn = torch.tensor(explorer.figure.axes[2].get_images()[0].get_array().data)
        keep = masks[iteration - 1]
        assert torch.equal(drawn.int(), 2 * keep.int() + one_shot.int())
        marker = explorer.figure.axes[0].get_lines()[-1]
        sparsity = 100 * (1 - keep.float().mean().item())
        assert marker.get_xdata()[0] == iteration
        assert marker.get_ydata()[0] == pytest.approx(sparsity, abs=1e-3)


def test_the_groups_of_a_pattern_are_counted(problem: tuple[Tensor, Tensor]) -> None:
    explorer = mask_schedule_explorer(*problem, pattern="2:4")
    kinds = torch.tensor(explorer.figure.axes[2].get_images()[0].get_array().data)
    assert ((kinds >= 2).unflatten(1, (-1, 4)).sum(-1) == 2).all()
    assert "keep exactly 2: 100.0 %" in explorer.view.caption
    change(explorer, iteration=1)
    assert "keep exactly 2: 100.0 %" not in explorer.view.caption


def test_the_last_iteration_stays_the_last(problem: tuple[Tensor, Tensor]) -> None:
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


def test_sparsity_is_locked_where_the_pattern_decides_it(problem: tuple[Tensor, Tensor]) -> None:
    explorer = mask_schedule_explorer(*problem, sparsity=0.7)
    change(explorer, pattern="2:4")
    assert explorer.controls["sparsity"].disabled
    assert errors_of(explorer)[-1] == pytest.approx(50)
    change(explorer, pattern="unstructured", schedule="one-shot")
    assert not explorer.controls["sparsity"].disabled
    assert explorer.controls["mask_steps"].disabled


@pytest.mark.parametrize("settings", [{"mask_steps": 0}, {"schedule": "one-shot"}])
def test_one_shot_is_zero_mask_steps(problem: tuple[Tensor, Tensor], settings: dict) -> None:
    explorer = mask_schedule_explorer(*problem)
    change(explorer, **settings)
    assert explorer.figure.axes[2].get_title().startswith("0.0 %")
    assert "0.0 % are gone" in explorer.view.caption


# --- layers of a model ---------------------------------------------------------------------


def collect(source: ModelLayers, block: int, layer: str = "mlp.up_proj") -> list[str]:
    """The steps that it takes to get a layer, whose gram must be that of `layer_gram`."""
    steps: list[str] = []
    progress = lambda _done, _total, name: steps.append(name.removeprefix("steps: "))  # noqa: E731
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
    assert collect(source, 0)[:2] == ["embedding the text", "grams of block 0"]
    assert collect(source, 0, "mlp.down_proj") == []
    assert collect(source, 1)[:2] == ["running block 0", "grams of block 1"]
    assert collect(source, 1, "self_attn.k_proj") == []
    # the way back: from a stream that was kept, or from the text where there was no memory for it
    first = "grams of block 0" if streams > 1 else "embedding the text"
    assert collect(source, 0)[0] == first
    q, k = (source.get(quiet, 0, f"self_attn.{name}_proj") for name in "qk")
    assert q.gram is k.gram, "layers of one input share their gram"


def test_a_walk_that_was_stopped_goes_on_where_it_was(tiny: tuple[nn.Module, Tensor]) -> None:
    source = ModelLayers(*tiny)

    def stop(_done: int, _total: int, name: str) -> None:
        if "grams" in name:
            raise Stopped("stopped")

    with pytest.raises(Stopped):
        source.get(stop, 1, "mlp.up_proj")
    assert collect(source, 1)[0] == "grams of block 1"


def test_grams_of_a_changed_model_are_collected_anew(tiny: tuple[nn.Module, Tensor]) -> None:
    model, tokens = load_model("tiny", device="cpu")[0], tiny[1]
    source = ModelLayers(model, tokens)
    before = source.get(quiet, 1, "mlp.up_proj").gram
    layer = find_layers(find_blocks(model)[0])["mlp.down_proj"]
    with torch.no_grad():
        read_weight(layer).mul_(3)
    assert collect(source, 1)[0] == "embedding the text"
    assert not torch.allclose(before, source.get(quiet, 1, "mlp.up_proj").gram, rtol=1e-2)


def test_the_model_may_be_run_while_grams_are_collected(tiny: tuple[nn.Module, Tensor]) -> None:
    model, tokens = load_model("tiny", device="cpu")[0].train(), tiny[1]
    expected = layer_gram(model, tokens, 1, "mlp.up_proj")[1]

    def meddle(*_step: Any) -> None:
        assert all(module.training for module in model.modules())
        for module in model.modules():
            assert not module._forward_pre_hooks
        thread = threading.Thread(target=lambda: model(tokens[:, :8]))
        thread.start()
        thread.join()

    found = ModelLayers(model, tokens).get(meddle, 1, "mlp.up_proj")
    torch.testing.assert_close(found.gram, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [layer_solve_explorer, mask_schedule_explorer])
def test_block_and_layer_can_be_chosen(tiny: tuple[nn.Module, Tensor], make: Callable) -> None:
    model, tokens = tiny
    explorer = make(model, tokens, block=0, layer="mlp.up_proj")
    assert "block 0 mlp.up_proj" in explorer.figure.axes[0].get_title(
        loc="left" if make is mask_schedule_explorer else "center"
    )
    before = change(explorer)
    after = change(explorer, block=1, layer="self_attn.v_proj")
    assert after != before and explorer.message.value == ""
    rows = explorer.figure.axes[-1].get_images()[0].get_array().shape[0]
    assert rows == 16


def test_a_name_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("helpers.explore.source.LENGTH", 16)
    monkeypatch.setattr("helpers.explore.source.SEQUENCES", 2)
    explorer = layer_solve_explorer("tiny")
    assert "block 1" in explorer.figure.axes[0].get_title()


def test_what_cannot_be_explored_is_refused(
    tiny: tuple[nn.Module, Tensor],
    problem: tuple[Tensor, Tensor],
    one_line_error: Callable,
    tmp_path: Path,
) -> None:
    model, tokens = tiny
    weight, gram = problem
    with one_line_error(HelpersError, "tokens are missing"):
        layer_solve_explorer(model)
    with one_line_error(HelpersError, "weight and gram"):
        mask_schedule_explorer(weight)
    with one_line_error(HelpersError, "16 inputs"):
        layer_solve_explorer(weight, gram[:5, :5])
    with one_line_error(HelpersError, "block 9", "0 to 1"):
        layer_solve_explorer(model, tokens, block=9)
    with one_line_error(HelpersError, "layer", "mlp.up_proj"):
        layer_solve_explorer(model, tokens, layer="up")
    model.save_pretrained(tmp_path)
    load_model("tiny")[1].save_pretrained(tmp_path)
    with one_line_error(HelpersError, "block by block", "load_model"):
        layer_solve_explorer(load_streamed(tmp_path)[0], tokens)
