"""What fits a GPU, what a reader takes of it, and memory that is checked before it is needed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.errors import BadParameter, OutOfMemory
from helpers.machine import check_memory, choose, machine_named, presets
from helpers.machine.memory import Memory
from helpers.machine.presets import notebook_memory, preset_that_fits, read_preset
from helpers.paths import notebooks_dir
from helpers.report.records import check_type
from helpers.runner import read_parameters_cell
from helpers.runner.plan import read_plan

AMPLE = Memory(64 * 10**9, 64 * 10**9, "Some GPU", 40 * 10**9, 40 * 10**9)
PRUNE = "04_prune_model"
CELLS = {path.stem: read_parameters_cell(path) for path in sorted(notebooks_dir().glob("*.ipynb"))}
NOTEBOOKS = [name for name, (values, _) in CELLS.items() if "preset" in values]
DEFAULTS = CELLS[PRUNE][0]


def with_gpu(name: str) -> Memory:
    """An idle machine with this GPU."""
    machine = machine_named(name)
    return Memory(machine.ram, machine.ram, name, machine.memory, machine.memory)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Callable[[Memory], None]:
    """Sets the memory that is free."""
    return lambda memory: monkeypatch.setattr(presets, "free_memory", lambda: memory)


@pytest.mark.parametrize(("preset", "gpu"), [("t4", "t4"), ("large", "a100-80g")])
def test_presets_fit_are_parameters_and_are_pinned_as_in_the_plans(preset: str, gpu: str) -> None:
    runs = [run.effective for plan in ("t4", "paper") for run in read_plan(plan, "04*")]
    pinned = {run["model"]: run["revision"] for run in runs}
    rows, machine = read_preset(preset), machine_named(gpu)
    assert list(rows) == NOTEBOOKS
    for notebook, row in rows.items():
        values, types = CELLS[notebook]
        for name, value in row.items():
            check_type(name, value, types[name])
        assert pinned[row["model"]] == row["revision"]
        on_gpu, in_ram = notebook_memory(notebook, values | row, gpu=True)
        assert on_gpu <= 0.8 * machine.memory and in_ram <= 0.8 * machine.ram


def test_auto_takes_the_largest_that_fits(here: Callable) -> None:
    gpus = ("t4", "v100", "l4", "a100-80g", "h100")
    found = [preset_that_fits(with_gpu(gpu)) for gpu in gpus]
    assert found == ["t4", "large", "t4", "large", "large"]
    # weights pass through RAM: 13.5 GB of llama-7b would kill the kernel while loading
    assert preset_that_fits(dataclasses.replace(with_gpu("v100"), ram_total=12 * 10**9)) == "t4"
    assert preset_that_fits(dataclasses.replace(AMPLE, gpu_total=3 * 10**9)) == ""
    here(with_gpu("t4"))
    chosen = choose("auto", PRUNE, DEFAULTS, DEFAULTS)
    assert chosen == choose("t4", PRUNE, DEFAULTS, DEFAULTS) != {}
    here(Memory(64 * 10**9, 64 * 10**9))
    assert choose("auto", PRUNE, DEFAULTS | {"model": "tiny"}, DEFAULTS) == {}


def test_what_a_reader_changed_stays(one_line_error: Callable) -> None:
    assert choose("", PRUNE, DEFAULTS, DEFAULTS) == {}
    found = choose("t4", PRUNE, DEFAULTS | {"sequences": 5}, DEFAULTS)
    assert "sequences" not in found and found["length"] == 2048
    assert found["model"].startswith("TinyLlama")
    for change in ({"model": "tiny"}, {"revision": "main"}):
        with one_line_error(BadParameter, "preset", next(iter(change)), "leave one"):
            choose("t4", PRUNE, DEFAULTS | change, DEFAULTS)
    with one_line_error(BadParameter, "06_tables_and_plots", PRUNE):
        choose("t4", "06_tables_and_plots", {}, {})
    with one_line_error(BadParameter, "'T4'", "auto, large, t4"):
        choose("T4", PRUNE, {}, {})


def test_the_tour_holds_two_models() -> None:
    """4 bytes for each of the 134,515,008 weights of the embedded model, once more than 04."""
    asked = {"model": "embedded", "sequences": 8, "length": 256, "window": 512, "windows": 6}
    one, two = (notebook_memory(name, asked, gpu=True) for name in (PRUNE, NOTEBOOKS[0]))
    assert two[0] - one[0] == 4 * 134_515_008 and two[1] == one[1]


def test_memory_is_checked_before_loading(here: Callable, one_line_error: Callable) -> None:
    given = DEFAULTS | read_preset("t4")[PRUNE]
    here(AMPLE)
    words = check_memory(PRUNE, given)
    assert "GPU memory" in words["needs"] and "40 GB of 40 GB" in words["free on Some GPU"]
    here(dataclasses.replace(AMPLE, gpu_free=2 * 10**9))
    with one_line_error(OutOfMemory, "TinyLlama", "GPU memory", "2.0 GB", "sequences"):
        check_memory(PRUNE, given)
    assert "GPU memory" not in check_memory(PRUNE, given | {"device": "cpu"})["needs"]
    here(dataclasses.replace(AMPLE, ram_free=10**9))
    with one_line_error(OutOfMemory, "RAM", "1.0 GB"):
        check_memory(PRUNE, given)
    here(Memory(16 * 10**9, 16 * 10**9))  # without a GPU all of the model is in RAM
    with one_line_error(OutOfMemory, "RAM", "16 GB"):
        check_memory(PRUNE, DEFAULTS | {"model": "huggyllama/llama-7b"})


@pytest.mark.parametrize("notebook", [*NOTEBOOKS, "07_your_own_method", "08_beyond_the_paper"])
def test_defaults_fit_a_laptop(here: Callable, notebook: str) -> None:
    """Also with a reader's own method, whose needs are not known."""
    here(Memory(4 * 10**9, 8 * 10**9))
    assert "RAM" in check_memory(notebook, CELLS[notebook][0])["needs"]


def test_bad_models_and_tasks(here: Callable, tmp_path: Path, one_line_error: Callable) -> None:
    """A model of unknown shape stops nothing; a task that does not exist does."""
    here(AMPLE)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    for name in ("someone/something", str(tmp_path)):
        assert "not known" in check_memory(PRUNE, DEFAULTS | {"model": name})["needs"]
    with one_line_error(BadParameter, "task 'rtf'", "rte"):
        check_memory("05_zero_shot", CELLS["05_zero_shot"][0] | {"tasks": ["rtf"]})
