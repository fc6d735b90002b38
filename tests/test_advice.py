"""What fits a machine, what a reader takes of it, and memory looked at before it is needed."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import psutil
import pytest

import helpers.machine.presets as module
from helpers.errors import BadParameter, OutOfMemory
from helpers.machine import memory as rooms
from helpers.machine.estimate import Machine, estimate, machine_named
from helpers.machine.memory import Room, memory_watch, ram
from helpers.machine.presets import (
    NOTEBOOKS,
    PRESETS,
    check_room,
    choose,
    defaults_for,
    machine_of,
    needs_of,
    suggestions,
)
from helpers.paths import notebooks_dir
from helpers.records import check_type
from helpers.runner.plan import read_parameters_cell, read_plan

GPUS = ["t4", "v100", "l4", "a100-80g", "h100"]
ROOMY = Room(64 * 10**9, 64 * 10**9, "Some GPU", 40 * 10**9, 40 * 10**9)


def cell(notebook: str) -> tuple[dict, dict]:
    """Defaults and types of a notebook's parameters."""
    return read_parameters_cell(notebooks_dir() / f"{notebook}.ipynb")


# --- what fits --------------------------------------------------------------------------------


@pytest.mark.parametrize("notebook", NOTEBOOKS)
@pytest.mark.parametrize("gpu", GPUS)
def test_suggestions_are_parameters_of_the_notebook(notebook: str, gpu: str) -> None:
    found = defaults_for(notebook, gpu)
    defaults, types = cell(notebook)
    assert found and set(found) <= set(defaults)
    for name, value in found.items():
        check_type(name, value, types[name])
    assert set(found) >= {"model", "revision"}


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_every_notebook_with_a_model_has_advice_and_the_cpu_keeps_the_defaults(
    notebook: str,
) -> None:
    assert defaults_for(notebook, "cpu") == defaults_for(notebook, "laptop") == {}


def test_notebooks_are_those_that_load_a_model() -> None:
    names = [path.stem for path in sorted(notebooks_dir().glob("0[0-5]*.ipynb"))]
    assert list(NOTEBOOKS) == [name for name in names if "model" in cell(name)[0]]


@pytest.mark.parametrize(
    ("gpu", "model", "dtype"),
    [
        ("t4", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "float16"),
        ("v100", "huggyllama/llama-7b", "float16"),
        ("l4", "HuggingFaceTB/SmolLM2-1.7B", "bfloat16"),
        ("a100-80g", "huggyllama/llama-7b", "float16"),
    ],
)
def test_the_largest_model_that_fits(gpu: str, model: str, dtype: str) -> None:
    found = defaults_for("04_prune_model", gpu)
    assert (found["model"], found["dtype"]) == (model, dtype)


def test_bfloat16_only_where_the_hardware_has_it() -> None:
    for gpu in ("t4", "v100"):
        small = dataclasses.replace(machine_named(gpu), memory=int(15e9))
        assert defaults_for("04_prune_model", small)["dtype"] == "float16"


@pytest.mark.parametrize("notebook", NOTEBOOKS)
@pytest.mark.parametrize("gpu", GPUS)
def test_suggestions_fit_with_room_to_spare(notebook: str, gpu: str) -> None:
    machine = machine_named(gpu)
    needs = needs_of(notebook, defaults_for(notebook, gpu), machine)
    assert needs.memory <= 0.8 * machine.memory and needs.host <= 0.8 * machine.host


def test_ram_counts_too_since_weights_pass_through_it() -> None:
    """A V100 in a machine with 12 GB: 13.5 GB of llama-7b would kill the kernel while loading."""
    small = dataclasses.replace(machine_named("v100"), host=int(12e9))
    assert defaults_for("04_prune_model", small)["model"].startswith("TinyLlama")


def test_a_gpu_too_small_for_any_keeps_the_defaults() -> None:
    tiny = dataclasses.replace(machine_named("t4"), memory=int(3e9))
    assert defaults_for("04_prune_model", tiny) == {}


def test_models_are_pinned_as_in_the_plans() -> None:
    pinned = {}
    for plan in ("t4", "paper"):
        for run in read_plan(plan, "04*"):
            pinned[run.effective["model"]] = run.effective["revision"]
    assert {preset.model: preset.revision for preset in PRESETS}.items() <= pinned.items()


def test_this_machine_is_the_one_that_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "this_machine", lambda: machine_named("t4"))
    assert defaults_for("04_prune_model") == defaults_for("04_prune_model", "t4")
    assert machine_of("auto") == machine_of(None) == machine_named("t4")


def test_unknown_names_are_refused(one_line_error) -> None:
    with one_line_error(BadParameter, "06_tables_and_plots", "04_prune_model"):
        defaults_for("06_tables_and_plots", "t4")
    with one_line_error(BadParameter, "tpu", "t4"):
        defaults_for("04_prune_model", "tpu")


# --- what is taken ----------------------------------------------------------------------------


def test_what_a_reader_changed_stays() -> None:
    given = cell("04_prune_model")[0] | {"sequences": 5}
    found = choose("t4", "04_prune_model", given)
    assert "sequences" not in found and found["length"] == 2048
    assert found["model"].startswith("TinyLlama")


def test_without_a_preset_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "this_machine", lambda: pytest.fail("not asked for"))
    assert choose("", "04_prune_model", cell("04_prune_model")[0]) == {}


@pytest.mark.parametrize("change", [{"model": "tiny"}, {"revision": "main"}])
def test_a_preset_does_not_replace_a_chosen_model(change: dict, one_line_error) -> None:
    given = cell("04_prune_model")[0] | change
    with one_line_error(BadParameter, "preset", next(iter(change)), "leave one"):
        choose("t4", "04_prune_model", given)
    assert choose("cpu", "04_prune_model", given) == {}


def test_an_unknown_preset_is_refused(one_line_error) -> None:
    with one_line_error(BadParameter, "T4", "t4"):
        choose("T4", "04_prune_model", cell("04_prune_model")[0])


# --- what it takes ----------------------------------------------------------------------------


def test_needs_are_those_of_the_plan(machine: Machine) -> None:
    run = next(run for run in read_plan("t4", "04*") if run.name == "tinyllama-1.1b-admm-grad-60")
    expected = estimate(run.effective, machine)
    needs = needs_of("04_prune_model", run.effective, machine)
    assert (needs.memory, needs.host) == (expected.memory_bytes, expected.host_bytes)
    assert needs.seconds == expected.total_seconds


@pytest.fixture
def machine() -> Machine:
    """A T4."""
    return machine_named("t4")


def test_the_tour_holds_two_models(machine: Machine) -> None:
    """4 bytes for each of the 134,515,008 weights of the embedded model, once more than 04."""
    asked = {"model": "embedded", "sequences": 8, "length": 256, "window": 512, "windows": 6}
    one = needs_of("04_prune_model", asked | {"dtype": "float32"}, machine)
    two = needs_of("00_start_here", asked, machine)
    assert two.memory - one.memory == 4 * 134_515_008 and two.host == one.host


def test_a_method_of_ones_own_takes_what_the_hungriest_takes(machine: Machine) -> None:
    given = cell("07_your_own_method")[0]
    assert given["method"] not in module.KNOWN
    own = needs_of("07_your_own_method", given, machine)
    for method in module.KNOWN:
        needs = needs_of("04_prune_model", given | {"method": method}, machine)
        assert needs.memory <= own.memory and needs.seconds is not None
    assert own.seconds is None
    assert "GPU memory" in check_room("07_your_own_method", given, free=ROOMY)["needs"]


def test_table_has_a_row_for_each_notebook(machine: Machine) -> None:
    rows = suggestions(machine)
    assert [row["notebook"] for row in rows] == list(NOTEBOOKS)
    assert all(row["model"].startswith("TinyLlama") for row in rows)
    assert [row["about"] == "–" for row in rows] == [False, True, True, True, False, False]
    cpu = suggestions(machine_named("laptop"))
    assert all("as it is" in row["model"] for row in cpu)


def test_room_is_told_before_loading(one_line_error) -> None:
    given = cell("04_prune_model")[0] | defaults_for("04_prune_model", "t4")
    told = check_room("04_prune_model", given, free=ROOMY)
    assert "GPU memory" in told["needs"] and "40.0 GB of 40.0 GB" in told["free on Some GPU"]
    full = dataclasses.replace(ROOMY, gpu_free=2 * 10**9)
    with one_line_error(OutOfMemory, "TinyLlama", "GPU memory", "2.0 GB", "sequences"):
        check_room("04_prune_model", given, free=full)
    with one_line_error(OutOfMemory, "RAM", "1.0 GB"):
        check_room("04_prune_model", given, free=dataclasses.replace(ROOMY, ram_free=10**9))


def test_a_gpu_that_is_not_used_does_not_count() -> None:
    given = cell("04_prune_model")[0] | {"device": "cpu"}
    told = check_room("04_prune_model", given, free=dataclasses.replace(ROOMY, gpu_free=0))
    assert "GPU memory" not in told["needs"]


def test_without_a_gpu_all_of_the_model_is_in_ram(one_line_error) -> None:
    given = cell("04_prune_model")[0] | {"model": "huggyllama/llama-7b"}
    with one_line_error(OutOfMemory, "RAM", "16.0 GB"):
        check_room("04_prune_model", given, free=Room(16 * 10**9, 16 * 10**9))


def test_a_model_of_unknown_shape_is_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    for name in ("someone/something", str(tmp_path)):
        given = cell("04_prune_model")[0] | {"model": name}
        assert "not known" in check_room("04_prune_model", given, free=ROOMY)["needs"]


# --- room -------------------------------------------------------------------------------------


def group(folder: Path, version: int, limit: object, used: int, cache: int) -> None:
    """A control group's files."""
    names = [rooms._FIRST, rooms._SECOND][version - 1]
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names[:2], (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{names[2]} {cache}\n")


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of control groups in the place of this machine's."""
    monkeypatch.setattr(rooms, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(rooms, "OWN_GROUPS", tmp_path / "own")
    return tmp_path


GIB = 1 << 30


def test_ram_of_the_machine(groups: Path) -> None:
    free, total = ram()
    assert total == psutil.virtual_memory().total
    assert abs(free - psutil.virtual_memory().available) < GIB


@pytest.mark.parametrize(
    ("version", "line", "place"),
    [
        (2, "0::/", "cgroup"),
        (2, "0::/jobs/one", "cgroup/jobs/one"),
        (2, "0::/jobs/one", "cgroup/jobs"),  # the group around it
        (2, "0::/of/the/host", "cgroup"),  # seen from inside a container
        (1, "5:cpuset,memory:/docker/abc", "cgroup/memory/docker/abc"),
        (1, "5:memory:/docker/abc", "cgroup/memory"),
    ],
)
def test_ram_of_a_container(groups: Path, version: int, line: str, place: str) -> None:
    (groups / "own").write_text(f"3:cpu:/x\n{line}\n")
    group(groups / place, version, GIB, GIB // 2, GIB // 4)
    assert ram() == (GIB - GIB // 2 + GIB // 4, GIB)


def test_a_group_without_a_limit_does_not_count(groups: Path) -> None:
    (groups / "own").write_text("0::/a/b\n")
    group(groups / "cgroup/a/b", 2, "max", GIB, 0)
    group(groups / "cgroup/a", 2, GIB, GIB // 2, 0)
    assert ram() == (GIB // 2, GIB)
    group(groups / "cgroup/a", 2, "max", GIB, 0)
    assert ram()[1] == psutil.virtual_memory().total


def test_the_watch_stops_before_the_kernel_is_killed(
    monkeypatch: pytest.MonkeyPatch, one_line_error
) -> None:
    monkeypatch.setattr(rooms, "ram", lambda: (10**8, 12 * 10**9))
    started = time.monotonic()
    with one_line_error(OutOfMemory, "0.1 GB of 12.0 GB", "smaller model"), memory_watch():
        time.sleep(20)
    assert time.monotonic() - started < 5


def test_the_watch_lets_work_with_room_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(rooms, "ram", lambda: (10**9, 12 * 10**9))
    with memory_watch():
        time.sleep(0.1)
    with pytest.raises(KeyboardInterrupt), memory_watch():  # a person's
        raise KeyboardInterrupt
    with pytest.raises(ZeroDivisionError), memory_watch():
        raise ZeroDivisionError


def test_the_watch_needs_the_main_thread(one_line_error) -> None:
    from threading import Thread

    found: list[BaseException] = []

    def work() -> None:
        try:
            with memory_watch():
                pass
        except BadParameter as error:
            found.append(error)

    thread = Thread(target=work)
    thread.start()
    thread.join()
    assert "main thread" in str(found[0])
    with one_line_error(BadParameter, "least"), memory_watch(least=0):
        pass
