"""What fits a GPU, what a reader takes of it, and memory that is checked before it is needed."""

from __future__ import annotations

import dataclasses
import json
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
NOTEBOOKS = [
    path.stem
    for path in sorted(notebooks_dir().glob("*.ipynb"))
    if "preset" in read_parameters_cell(path)[0]
]


def defaults(notebook: str) -> dict:
    return read_parameters_cell(notebooks_dir() / f"{notebook}.ipynb")[0]


def with_gpu(name: str) -> Memory:
    """An idle machine with this GPU."""
    machine = machine_named(name)
    return Memory(machine.ram, machine.ram, name, machine.memory, machine.memory)


# --- what fits --------------------------------------------------------------------------------


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


def test_auto_takes_the_largest_that_fits() -> None:
    gpus = ("t4", "v100", "l4", "a100-80g", "h100")
    found = [preset_that_fits(with_gpu(gpu)) for gpu in gpus]
    assert found == ["t4", "large", "t4", "large", "large"]
    # weights pass through RAM: 13.5 GB of llama-7b would kill the kernel while loading
    assert preset_that_fits(dataclasses.replace(with_gpu("v100"), ram_total=12 * 10**9)) == "t4"
    assert preset_that_fits(dataclasses.replace(AMPLE, gpu_total=3 * 10**9)) == ""
    assert preset_that_fits(Memory(64 * 10**9, 64 * 10**9)) == ""


def test_models_are_pinned_as_in_the_plans() -> None:
    pinned = {}
    for plan in ("t4", "paper"):
        for run in read_plan(plan, "04*"):
            pinned[run.effective["model"]] = run.effective["revision"]
    for preset in PRESETS:
        for notebook in NOTEBOOKS:
            found = read_preset(preset)[notebook]
            assert pinned[found["model"]] == found["revision"]


def test_unknown_names_are_refused(one_line_error) -> None:
    with one_line_error(BadParameter, "06_tables_and_plots", "04_prune_model"):
        choose("t4", "06_tables_and_plots", {}, {})
    with one_line_error(BadParameter, "'T4'", "auto, large, t4"):
        choose("T4", "04_prune_model", {}, {})


# --- what is taken ----------------------------------------------------------------------------


def test_what_a_reader_changed_stays() -> None:
    given = defaults("04_prune_model") | {"sequences": 5}
    found = choose("t4", "04_prune_model", given, defaults("04_prune_model"))
    assert "sequences" not in found and found["length"] == 2048
    assert found["model"].startswith("TinyLlama")


def test_auto_asks_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    given = defaults("04_prune_model")
    monkeypatch.setattr(presets, "free_memory", lambda: with_gpu("t4"))
    found = choose("auto", "04_prune_model", given, given)
    assert found == choose("t4", "04_prune_model", given, given) != {}
    monkeypatch.setattr(presets, "free_memory", lambda: Memory(10**9, 10**9))
    assert choose("auto", "04_prune_model", given | {"model": "tiny"}, given) == {}


def test_without_a_preset_nothing_changes_or_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presets, "free_memory", lambda: pytest.fail("not asked for"))
    assert choose("", "04_prune_model", {}, {}) == {}


@pytest.mark.parametrize("change", [{"model": "tiny"}, {"revision": "main"}])
def test_a_preset_does_not_replace_a_chosen_model(change: dict, one_line_error) -> None:
    given = defaults("04_prune_model") | change
    with one_line_error(BadParameter, "preset", next(iter(change)), "leave one"):
        choose("t4", "04_prune_model", given, defaults("04_prune_model"))


# --- what a notebook takes --------------------------------------------------------------------


def test_the_tour_holds_two_models() -> None:
    """4 bytes for each of the 134,515,008 weights of the embedded model, once more than 04."""
    asked = {"model": "embedded", "sequences": 8, "length": 256, "window": 512, "windows": 6}
    one, two = (notebook_memory(name, asked, gpu=True) for name in ("04_prune_model", NOTEBOOKS[0]))
    assert two[0] - one[0] == 4 * 134_515_008 and two[1] == one[1]


def test_memory_is_checked_before_loading(one_line_error) -> None:
    given = defaults("04_prune_model") | read_preset("t4")["04_prune_model"]
    words = check_memory("04_prune_model", given, free=AMPLE)
    assert "GPU memory" in words["needs"] and "40 GB of 40 GB" in words["free on Some GPU"]
    full = dataclasses.replace(AMPLE, gpu_free=2 * 10**9)
    with one_line_error(OutOfMemory, "TinyLlama", "GPU memory", "2.0 GB", "sequences"):
        check_memory("04_prune_model", given, free=full)
    with one_line_error(OutOfMemory, "RAM", "1.0 GB"):
        check_memory("04_prune_model", given, free=dataclasses.replace(AMPLE, ram_free=10**9))
    given["device"] = "cpu"  # then a full GPU does not count
    assert "GPU memory" not in check_memory("04_prune_model", given, free=full)["needs"]


@pytest.mark.parametrize("notebook", [*NOTEBOOKS, "07_your_own_method"])
def test_defaults_fit_a_laptop(notebook: str) -> None:
    """And a method of a reader's own, whose needs nobody knows, is no obstacle."""
    laptop = Memory(4 * 10**9, 8 * 10**9)
    assert "RAM" in check_memory(notebook, defaults(notebook), free=laptop)["needs"]


def test_without_a_gpu_all_of_the_model_is_in_ram(one_line_error) -> None:
    given = defaults("04_prune_model") | {"model": "huggyllama/llama-7b"}
    with one_line_error(OutOfMemory, "RAM", "16 GB"):
        check_memory("04_prune_model", given, free=Memory(16 * 10**9, 16 * 10**9))


def test_a_model_of_unknown_shape_is_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    for name in ("someone/something", str(tmp_path)):
        given = defaults("04_prune_model") | {"model": name}
        assert "not known" in check_memory("04_prune_model", given, free=AMPLE)["needs"]
