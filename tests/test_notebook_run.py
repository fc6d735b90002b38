"""What opens a notebook's run and writes its record, on notebooks of a few parameters."""

import pytest
from small_project import write_notebook

from helpers.errors import BadParameter
from helpers.paths import notebooks_dir, results_dir
from reproduction import notebook, open_run
from reproduction.parameters import read_parameters_cell
from reproduction.records import read_record

CELL = """\
preset = ""
model = "tiny"
method = "admm1"
sparsity: float | None = 0.5
pattern = "unstructured"
options = {"iterations": 20}
sequences = 8
device = "cpu"
record_path = ""
"""


@pytest.fixture(autouse=True)
def book(tmp_path, monkeypatch):
    """A notebook "book" with a parameters cell, whose memory and presets are not looked up."""
    write_notebook(tmp_path, "book", [CELL], [["parameters"]])
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(notebook, "notebooks_dir", lambda: tmp_path)
    monkeypatch.setattr(
        notebook, "check_memory", lambda name, parameters: {"needs": "1 GB"}
    )
    monkeypatch.setattr(notebook, "choose", lambda *_: {})


def parameters(**changes):
    values = {}
    exec(CELL, values)
    return values | changes


def test_a_record_holds_every_parameter_of_the_cell():
    values = parameters(sparsity=None, pattern="2:4", extra=1)
    run = open_run("book", values)
    contents = {"seeds": {"calibration": 3}, "layers": [{"layer": "q"}]}
    metrics = {"perplexity": (7.5, "1"), "acc": (0.5, "1", 0.1)}
    table = run.write(metrics, name="by-hand", **contents)
    record = read_record(results_dir("scratch") / "records/book--by-hand.json")
    names = ["model", "method", "sparsity", "pattern", "options", "sequences", "device"]
    assert record["parameters"] == {name: values[name] for name in names}
    assert record["metrics"]["acc"] == {"value": 0.5, "unit": "1", "tolerance": 0.1}
    assert (record["notebook"], record["name"]) == ("book", "by-hand")
    assert {key: record[key] for key in contents} == contents
    assert record["data"] is None
    assert record["seconds"] > 0
    assert record["peak_memory_bytes"] > 1e6
    assert table.loc["perplexity", "value"] == 7.5
    assert list(table) == ["value", "tolerance"]  # no units where all are pure numbers
    assert run.write({"time": (1.0, "s")}).loc["time"].tolist() == [1.0, "s"]
    assert run.needs.data["this machine"].to_dict() == {"needs": "1 GB"}


def test_a_preset_sets_the_notebooks_variables_before_memory_is_checked(monkeypatch):
    def choose(preset, name, given, defaults):
        assert (preset, name) == ("auto", "book")
        assert given["sequences"] == 9
        assert defaults["sequences"] == 8
        return {"model": "larger"}

    monkeypatch.setattr(notebook, "choose", choose)
    monkeypatch.setattr(
        notebook, "check_memory", lambda name, given: {"for": given["model"]}
    )
    run = open_run("book", values := parameters(preset="auto", sequences=9))
    assert values["model"] == run.parameters["model"] == "larger"
    assert run.needs.data.loc["for"].item() == "larger"


@pytest.mark.parametrize(
    "injected, sparsity",
    [("", None), ("pattern = '2:4'", None), ("sparsity = 0.5", 0.5)],
)
def test_a_pattern_takes_the_place_of_a_sparsity_that_nobody_wrote(injected, sparsity):
    values = parameters(pattern="2:4", In=[f"# Parameters\n{injected}\n"])
    run = open_run("book", values)
    assert values["sparsity"] == run.parameters["sparsity"] == sparsity
    assert values["pattern"] == run.parameters["pattern"] == "2:4"


def test_what_open_run_refuses(one_line_error):
    injected = ["# Parameters\nsparsty = 0.7\n"]  # as papermill does, which only warns
    with one_line_error(BadParameter, "sequences", "'8'"):
        open_run("book", parameters(sequences="8"))
    with one_line_error(BadParameter, "device", "'gpu'"):
        open_run("book", parameters(device="gpu"))
    with one_line_error(BadParameter, "sparsty", "sparsity"):
        open_run("book", parameters(In=injected))
    with one_line_error(
        BadParameter, "sparcity", "'sparsity'", "del sparcity", "kernel"
    ):
        open_run("book", parameters(sparcity=0.7))  # in a live kernel
    with one_line_error(BadParameter, "60", "0.6"):
        open_run("book", parameters(sparsity=60.0))
    with one_line_error(BadParameter, "admm_grad", "'admm-grad'"):
        open_run("book", parameters(method="admm_grad"))
    # the right name, after a first try in the same kernel, and with what --inject-paths adds
    injected.append('# Parameters\nsparsity = 0.7\nPAPERMILL_OUTPUT_PATH = "a.ipynb"\n')
    values = parameters(In=injected, sparsity=0.7)
    assert open_run("book", values).parameters["sparsity"] == 0.7
    del values["sequences"]
    with one_line_error(BadParameter, "sequences", "misspelt"):
        open_run("book", values)


@pytest.mark.parametrize("name", ["00_start_here", "04_prune_model", "05_zero_shot"])
@pytest.mark.parametrize(
    "change, word",
    [
        ({"method": "admm_grad"}, "'admm-grad'"),
        ({"calibration": "c5"}, "'c5'"),
        ({"calibration": "missing.txt"}, "missing.txt"),
        ({"evaluation": "wikitext"}, "'wikitext2'"),
        ({"options": {"iterationz": 30}}, "'iterationz'"),
        ({"options": {"iterations": 0}}, "iterations 0"),
    ],
)
def test_names_are_checked_before_a_model_is_loaded(
    name, change, word, monkeypatch, one_line_error
):
    monkeypatch.setattr(notebook, "notebooks_dir", notebooks_dir)
    defaults, _ = read_parameters_cell(notebooks_dir() / f"{name}.ipynb")
    if change.keys() <= defaults.keys():
        with one_line_error(BadParameter, word):
            open_run(name, defaults | change)


@pytest.mark.parametrize(
    "name, change, word",
    [
        ("01_calibration_capture", {"block": 30}, "0 to 29"),
        ("02_admm_layer_solve", {"block": -1}, "block -1"),
        ("03_mask_schedule", {"block": 2, "model": "tiny"}, "0 to 1"),
        ("06_tables_and_plots", {"plan": "lapto"}, "'laptop'"),
    ],
)
def test_a_block_or_a_plan_that_is_not_there(
    name, change, word, monkeypatch, one_line_error
):
    monkeypatch.setattr(notebook, "notebooks_dir", notebooks_dir)
    defaults, _ = read_parameters_cell(notebooks_dir() / f"{name}.ipynb")
    with one_line_error(BadParameter, word):
        open_run(name, defaults | change)
    unknown = {"block": 29} if "block" in change else {"plan": "beyond"}
    open_run(name, defaults | unknown)


def test_what_a_notebook_may_prune_with(monkeypatch, one_line_error):
    monkeypatch.setattr(notebook, "notebooks_dir", notebooks_dir)
    opened = {
        "04_prune_model": dict(method="dense"),
        "05_zero_shot": dict(options={"passes": 1, "iterations": 30}),
        "07_your_own_method": {},  # which registers it later
        "08_beyond_the_paper": {},
        "03_mask_schedule": {},
    }
    for name, change in opened.items():
        defaults, _ = read_parameters_cell(notebooks_dir() / f"{name}.ipynb")
        open_run(name, defaults | change)
    defaults, _ = read_parameters_cell(notebooks_dir() / "00_start_here.ipynb")
    with one_line_error(BadParameter, "'dense'"):
        open_run("00_start_here", defaults | {"method": "dense"})


def test_a_parameter_that_changes_meanwhile_stops_the_record(one_line_error):
    run = open_run("book", values := parameters())
    values["sparsity"] = 0.7
    with one_line_error(BadParameter, "sparsity", "0.7", "0.5"):
        run.write({"x": (1, "1")})
    values["sparsity"] = 0.5
    values["options"]["iterations"] = 40  # in place
    with one_line_error(BadParameter, "options"):
        run.write({"x": (1, "1")})
    assert not results_dir("scratch").exists()


def test_a_notebook_may_bring_a_method(tmp_path, monkeypatch):
    cells = [CELL, "@register(method)\ndef mine(): ..."]
    write_notebook(tmp_path, "book", cells, [["parameters"], []])
    assert open_run("book", parameters(method="mine")).parameters["method"] == "mine"


def test_what_a_run_needs_is_shown_whole(monkeypatch):
    said = "not known: " + 20 * "a long name " + "<b>"
    monkeypatch.setattr(notebook, "check_memory", lambda *_: {"memory": said})
    shown = open_run("book", parameters()).needs.to_html()
    assert said.replace("<b>", "&lt;b&gt;") in shown
