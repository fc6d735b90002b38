"""What fits a GPU, what a user takes of it, and memory that is checked before it is needed."""

import dataclasses

import pytest

from helpers import memory
from helpers.errors import BadParameter, OutOfMemory
from helpers.memory import Memory, memory_needed
from helpers.paths import notebooks_dir
from reproduction.machine import check_memory, choose
from reproduction.machine.presets import notebook_line, preset_that_fits, read_preset
from reproduction.parameters import read_parameters_cell
from reproduction.plan import read_plan
from reproduction.records import check_type

PRUNE = "04_prune_model"
TABLES = "06_tables_and_plots"
CELLS = {
    path.stem: read_parameters_cell(path)
    for path in sorted(notebooks_dir().glob("*.ipynb"))
}
DEFAULTS = CELLS[PRUNE][0]


def machine(gpu_gigabytes, ram_gigabytes):
    """An idle machine with a GPU."""
    gpu = gpu_gigabytes * 10**9
    ram = ram_gigabytes * 10**9
    return Memory(ram, ram, "a GPU", gpu, gpu)


T4 = machine(15, 12)  # as Colab gives it
V100 = machine(32, 60)
WITHOUT_GPU = Memory(16 * 10**9, 16 * 10**9)


@pytest.fixture
def here(monkeypatch):
    """Sets the memory that is free."""
    return lambda there: monkeypatch.setattr(memory, "free_memory", lambda: there)


@pytest.mark.parametrize("preset", ["t4", "large"])
def test_presets_fit_are_parameters_and_are_pinned_as_in_the_plans(preset):
    runs = read_plan("t4", "04*") + read_plan("paper", "04*")
    pinned = {run.effective["model"]: run.effective["revision"] for run in runs}
    rows = read_preset(preset)
    gpu_bytes = 1e9 * rows.pop("min_gpu_gb")
    ram_bytes = 1e9 * rows.pop("min_ram_gb")
    assert list(rows) == [name for name in CELLS if "preset" in CELLS[name][0]]
    for notebook, row in rows.items():
        values, types = CELLS[notebook]
        for name, value in row.items():
            check_type(name, value, types[name])
        assert pinned[row["model"]] == row["revision"]
        given = values | row | notebook_line(notebook)
        on_gpu, in_ram = memory_needed(gpu=True, **given)
        assert on_gpu <= 0.9 * gpu_bytes and in_ram <= 0.8 * ram_bytes


def test_auto_takes_the_largest_that_fits(here):
    assert preset_that_fits(T4) == "t4"
    assert preset_that_fits(V100) == "large"
    # weights pass through RAM: 13.5 GB of llama-7b would kill the kernel while loading
    assert preset_that_fits(machine(32, 12)) == "t4"
    assert preset_that_fits(machine(3, 60)) == ""
    here(T4)
    t4 = choose("t4", PRUNE, DEFAULTS, DEFAULTS)
    assert choose("auto", PRUNE, DEFAULTS, DEFAULTS) == t4
    here(WITHOUT_GPU)
    assert choose("auto", PRUNE, DEFAULTS | {"model": "tiny"}, DEFAULTS) == {}


def test_what_a_user_changed_stays(one_line_error):
    assert choose("", PRUNE, DEFAULTS, DEFAULTS) == {}
    chosen = choose("t4", PRUNE, DEFAULTS | {"sequences": 5}, DEFAULTS)
    assert "sequences" not in chosen
    assert chosen["length"] == 2048
    assert chosen["model"].startswith("TinyLlama")
    for name in ("model", "revision"):
        given = DEFAULTS | {name: "tiny"}
        with one_line_error(BadParameter, "preset", name):
            choose("t4", PRUNE, given, DEFAULTS)
    with one_line_error(BadParameter, TABLES, PRUNE):
        choose("t4", TABLES, {}, {})
    with one_line_error(BadParameter, "'T4'", "auto, large, t4"):
        choose("T4", PRUNE, {}, {})


def test_memory_is_checked_before_loading(here, one_line_error):
    def needs(**changes):
        return check_memory(PRUNE, parameters | changes)["needs"]

    parameters = DEFAULTS | read_preset("t4")[PRUNE]
    here(V100)
    assert "GPU memory" in needs()
    assert check_memory(PRUNE, parameters)["free on a GPU"] == "32 GB of 32 GB"
    here(dataclasses.replace(V100, gpu_free=2 * 10**9))
    with one_line_error(OutOfMemory, "TinyLlama", "GPU", "2.0 GB", "sequences"):
        needs()
    assert "GPU memory" not in needs(device="cpu")
    here(dataclasses.replace(V100, ram_free=10**9))
    with one_line_error(OutOfMemory, "RAM", "1.0 GB"):
        needs()
    here(WITHOUT_GPU)  # then all of the model is in RAM
    with one_line_error(OutOfMemory, "RAM", "16 GB"):
        needs(model="huggyllama/llama-7b", dtype="float32")
    assert "not known" in needs(model="someone/something")
    with one_line_error(BadParameter, "did you mean 'embedded'"):
        needs(model="embeded")
