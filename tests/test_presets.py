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
from helpers.machine.presets import PRESETS, notebook_memory, preset_that_fits, read_preset
from helpers.paths import notebooks_dir
from helpers.records import check_type
from helpers.runner import read_parameters_cell
from helpers.runner.plan import read_plan

AMPLE = Memory(64 * 10**9, 64 * 10**9, "Some GPU", 40 * 10**9, 40 * 10**9)
PRUNE = "04_prune_model"
NOTEBOOKS = [
    path.stem
    for path in sorted(notebooks_dir().glob("*.ipynb"))
    if "preset" in read_parameters_cell(path)[0]
]


def defaults(notebook: str = PRUNE) -> dict:
    return read_parameters_cell(notebooks_dir() / f"{notebook}.ipynb")[0]


def with_gpu(name: str) -> Memory:
    """An idle machine with this GPU."""
    machine = machine_named(name)
    return Memory(machine.ram, machine.ram, name, machine.memory, machine.memory)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Callable[[Memory], None]:
    """Sets the memory that is free."""
    return lambda memory: monkeypatch.setattr(presets, "free_memory", lambda: memory)


@pytest.mark.parametrize("notebook", NOTEBOOKS)
@pytest.mark.parametrize(("preset", "gpu"), [("t4", "t4"), ("large", "a100-80g")])
def test_presets_are_parameters_of_the_notebook_and_fit(
    notebook: str, preset: str, gpu: str
) -> None:
    found = read_preset(preset)[notebook]
    values, types = read_parameters_cell(notebooks_dir() / f"{notebook}.ipynb")
    assert set(found) <= set(values) and set(found) >= {"model", "revision"}
    for name, value in found.items():
        check_type(name, value, types[name])
    on_gpu, in_ram = notebook_memory(notebook, values | found, gpu=True)
    assert on_gpu <= 0.8 * machine_named(gpu).memory and in_ram <= 0.8 * machine_named(gpu).ram


def test_models_are_pinned_as_in_the_plans() -> None:
    runs = [run.effective for plan in ("t4", "paper") for run in read_plan(plan, "04*")]
    pinned = {run["model"]: run["revision"] for run in runs}
    for row in (row for preset in PRESETS for row in read_preset(preset).values()):
        assert pinned[row["model"]] == row["revision"]


def test_auto_takes_the_largest_that_fits(here: Callable) -> None:
    gpus = ("t4", "v100", "l4", "a100-80g", "h100")
    found = [preset_that_fits(with_gpu(gpu)) for gpu in gpus]
    assert found == ["t4", "large", "t4", "large", "large"]
    # weights pass through RAM: 13.5 GB of llama-7b would kill the kernel while loading
    assert preset_that_fits(dataclasses.replace(with_gpu("v100"), ram_total=12 * 10**9)) == "t4"
    assert preset_that_fits(dataclasses.replace(AMPLE, gpu_total=3 * 10**9)) == ""
    given = defaults()
    here(with_gpu("t4"))
    assert choose("auto", PRUNE, given, given) == choose("t4", PRUNE, given, given) != {}
    here(Memory(64 * 10**9, 64 * 10**9))
    assert choose("auto", PRUNE, given | {"model": "tiny"}, given) == {}


def test_what_a_reader_changed_stays(one_line_error: Callable) -> None:
    given = defaults()
    assert choose("", PRUNE, given, given) == {}
    found = choose("t4", PRUNE, given | {"sequences": 5}, given)
    assert "sequences" not in found and found["length"] == 2048
    assert found["model"].startswith("TinyLlama")
    for change in ({"model": "tiny"}, {"revision": "main"}):
        with one_line_error(BadParameter, "preset", next(iter(change)), "leave one"):
            choose("t4", PRUNE, given | change, given)


def test_unknown_names_are_refused(one_line_error: Callable) -> None:
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
    given = defaults() | read_preset("t4")[PRUNE]
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
        check_memory(PRUNE, defaults() | {"model": "huggyllama/llama-7b"})


@pytest.mark.parametrize("notebook", [*NOTEBOOKS, "07_your_own_method"])
def test_defaults_fit_a_laptop(here: Callable, notebook: str) -> None:
    """Also with a reader's own method, whose needs are not known."""
    here(Memory(4 * 10**9, 8 * 10**9))
    assert "RAM" in check_memory(notebook, defaults(notebook))["needs"]


def test_bad_models_and_tasks(here: Callable, tmp_path: Path, one_line_error: Callable) -> None:
    """A model of unknown shape stops nothing; a task that does not exist does."""
    here(AMPLE)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    for name in ("someone/something", str(tmp_path)):
        assert "not known" in check_memory(PRUNE, defaults() | {"model": name})["needs"]
    with one_line_error(BadParameter, "task 'rtf'", "rte"):
        check_memory("05_zero_shot", defaults("05_zero_shot") | {"tasks": ["rtf"]})
