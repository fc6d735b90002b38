"""Explorers: drive the controls as a reader would and see the picture change."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from helpers import gram_of
from helpers.widgets import Explorer, layer_solve_explorer, mask_schedule_explorer, progress_bar


@pytest.fixture(scope="module")
def problem() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(16, 16, generator=generator)
    inputs = torch.randn(200, 16, generator=generator) @ mixing
    return torch.randn(24, 16, generator=generator), gram_of(inputs)


def errors_of(explorer: Explorer, panel: int = 0) -> list[float]:
    """The error curve that the picture shows."""
    return list(explorer.figure.axes[panel].get_lines()[0].get_ydata())


def kept(explorer: Explorer) -> float:
    """The fraction of dark cells in the mask that the picture shows."""
    return float(explorer.figure.axes[-1].get_images()[0].get_array().mean())


def test_layer_explorer_redraws_for_every_control(problem: tuple[Tensor, Tensor]) -> None:
    explorer = layer_solve_explorer(*problem)
    for name, value in {"rho": 10.0, "iterations": 5, "sparsity": 0.8}.items():
        before = bytes(explorer.picture.value)
        explorer.controls[name].value = value
        after = bytes(explorer.picture.value)
        assert after.startswith(b"\x89PNG") and after != before, name
    assert len(errors_of(explorer)) == 5


def test_layer_explorer_shows_what_the_solver_does(problem: tuple[Tensor, Tensor]) -> None:
    explorer = layer_solve_explorer(*problem, sparsity=0.5, iterations=60)
    errors = errors_of(explorer)
    assert errors[-1] < errors[0]
    assert kept(explorer) == pytest.approx(0.5, abs=0.01)
    optimum = float(explorer.figure.axes[0].texts[1].get_text().split(": ")[1])
    assert errors[-1] == pytest.approx(optimum, rel=0.05)


def test_schedule_explorer_redraws_for_every_control(problem: tuple[Tensor, Tensor]) -> None:
    explorer = mask_schedule_explorer(*problem)
    changes = {"schedule": "released", "mask_steps": 4, "sparsity": 0.3, "pattern": "4:8"}
    for name, value in changes.items():
        before = explorer.picture.value
        explorer.controls[name].value = value
        assert explorer.picture.value != before, name
    assert len(errors_of(explorer, 1)) == 4 + 5


def test_schedule_explorer_growth_follows_the_schedule(problem: tuple[Tensor, Tensor]) -> None:
    explorer = mask_schedule_explorer(*problem, sparsity=0.6)
    growth = errors_of(explorer)
    assert growth[0] < growth[7] < growth[14] == growth[-1] == pytest.approx(60, abs=0.2)
    explorer.controls["schedule"].value = "released"
    assert errors_of(explorer)[0] == pytest.approx(60, abs=0.2)


def test_sparsity_is_locked_where_the_pattern_decides_it(problem: tuple[Tensor, Tensor]) -> None:
    explorer = mask_schedule_explorer(*problem, sparsity=0.7)
    explorer.controls["pattern"].value = "2:4"
    assert explorer.controls["sparsity"].disabled
    assert errors_of(explorer)[-1] == pytest.approx(50)
    explorer.controls["pattern"].value = "unstructured"
    assert not explorer.controls["sparsity"].disabled


def test_one_shot_is_zero_mask_steps(problem: tuple[Tensor, Tensor]) -> None:
    explorer = mask_schedule_explorer(*problem)
    explorer.controls["mask_steps"].value = 0
    assert explorer.figure.axes[2].get_title().startswith("0.0 %")


def test_what_cannot_be_drawn_is_said_and_the_picture_stays(
    problem: tuple[Tensor, Tensor],
) -> None:
    weight, gram = problem
    explorer = mask_schedule_explorer(weight[:, :12], gram[:12, :12])  # 12 inputs: no 4:8
    before = explorer.picture.value
    explorer.controls["pattern"].value = "4:8"
    assert "4:8" in explorer.message.value and explorer.picture.value == before
    explorer.controls["pattern"].value = "2:4"
    assert explorer.message.value == "" and explorer.picture.value != before


def test_progress_bar_counts_layers(capsys: pytest.CaptureFixture[str]) -> None:
    bar = progress_bar("wanda")
    for done in range(1, 4):
        bar.show(done, 3, f"block 0 layer {done}")
    assert bar._bar.n == bar._bar.total == 3
    bar.close()
