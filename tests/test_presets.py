"""What fits a GPU, what a user takes of it, and memory that is checked before it is needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from helpers.errors import BadParameter, OutOfMemory
from helpers.machine import check_memory, choose, presets
from helpers.machine.memory import Memory
from helpers.machine.presets import notebook_memory, preset_that_fits, read_preset
from helpers.paths import notebooks_dir
from helpers.report import check_type
from helpers.runner import read_parameters_cell, read_plan

PRUNE = "04_prune_model"
CELLS = {
    path.stem: read_parameters_cell(path)
    for path in sorted(notebooks_dir().glob("*.ipynb"))
}
NOTEBOOKS = [name for name, (values, _) in CELLS.items() if "preset" in values]
DEFAULTS = CELLS[PRUNE][0]


def machine(gpu_gigabytes: int, ram_gigabytes: int) -> Memory:
    """An idle machine with a GPU."""
    gpu, ram = gpu_gigabytes * 10**9, ram_gigabytes * 10**9
    return Memory(ram, ram, "a GPU", gpu, gpu)


T4, V100 = machine(15, 12), machine(32, 60)  # a T4 as Colab gives it


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Callable[[Memory], None]:
    """Sets the memory that is free."""
    return lambda memory: monkeypatch.setattr(presets, "free_memory", lambda: memory)


@pytest.mark.parametrize(("preset", "there"), [("t4", T4), ("large", V100)])
def test_presets_fit_are_parameters_and_are_pinned_as_in_the_plans(
    preset: str, there: Memory
) -> None:
    runs = [run.effective for plan in ("t4", "paper") for run in read_plan(plan, "04*")]
    pinned = {run["model"]: run["revision"] for run in runs}
    rows = read_preset(preset)
    assert list(rows) == NOTEBOOKS
    for notebook, row in rows.items():
        values, types = CELLS[notebook]
        for name, value in row.items():
            check_type(name, value, types[name])
        assert pinned[row["model"]] == row["revision"]
        on_gpu, in_ram = notebook_memory(notebook, values | row, gpu=True)
        assert on_gpu <= 0.8 * there.gpu_total and in_ram <= 0.8 * there.ram_total


def test_auto_takes_the_largest_that_fits(here: Callable) -> None:
    # weights pass through RAM: 13.5 GB of llama-7b would kill the kernel while loading
    machines = (T4, V100, machine(32, 12), machine(3, 60))
    assert [preset_that_fits(there) for there in machines] == ["t4", "large", "t4", ""]
    here(T4)
    assert choose("auto", PRUNE, DEFAULTS, DEFAULTS) == choose(
        "t4", PRUNE, DEFAULTS, DEFAULTS
    )
    here(Memory(64 * 10**9, 64 * 10**9))
    assert choose("auto", PRUNE, DEFAULTS | {"model": "tiny"}, DEFAULTS) == {}


def test_what_a_user_changed_stays(one_line_error: Callable) -> None:
    assert choose("", PRUNE, DEFAULTS, DEFAULTS) == {}
    chosen = choose("t4", PRUNE, DEFAULTS | {"sequences": 5}, DEFAULTS)
    assert "sequences" not in chosen and chosen["length"] == 2048
    assert chosen["model"].startswith("TinyLlama")
    for change in ({"model": "tiny"}, {"revision": "main"}):
        with one_line_error(BadParameter, "preset", next(iter(change))):
            choose("t4", PRUNE, DEFAULTS | change, DEFAULTS)
    with one_line_error(BadParameter, "06_tables_and_plots", PRUNE):
        choose("t4", "06_tables_and_plots", {}, {})
    with one_line_error(BadParameter, "'T4'", "auto, large, t4"):
        choose("T4", PRUNE, {}, {})


def test_memory_is_checked_before_loading(
    here: Callable, one_line_error: Callable
) -> None:
    given = DEFAULTS | read_preset("t4")[PRUNE]
    here(V100)
    words = check_memory(PRUNE, given)
    assert "GPU memory" in words["needs"] and "32 GB of 32 GB" in words["free on a GPU"]
    here(dataclasses.replace(V100, gpu_free=2 * 10**9))
    with one_line_error(OutOfMemory, "TinyLlama", "GPU memory", "2.0 GB", "sequences"):
        check_memory(PRUNE, given)
    assert "GPU memory" not in check_memory(PRUNE, given | {"device": "cpu"})["needs"]
    here(dataclasses.replace(V100, ram_free=10**9))
    with one_line_error(OutOfMemory, "RAM", "1.0 GB"):
        check_memory(PRUNE, given)
    here(Memory(16 * 10**9, 16 * 10**9))  # without a GPU all of the model is in RAM
    with one_line_error(OutOfMemory, "RAM", "16 GB"):
        check_memory(PRUNE, DEFAULTS | {"model": "huggyllama/llama-7b"})
    assert (
        "not known"
        in check_memory(PRUNE, DEFAULTS | {"model": "someone/something"})["needs"]
    )
