"""Run files and the runs they stand for; the committed plans are those of the records."""

import re

import pytest
import small_project
from small_project import PARAMETERS, write_notebook

from helpers.errors import RunError
from helpers.paths import reference_dir
from reproduction.compare import same_run
from reproduction.plan import plan_names, read_plan
from reproduction.records import read_records

project = small_project.project
TABLES = "06_tables_and_plots"


# --- run files and notebooks ---------------------------------------------------------------

GRID = """
name: "{pattern}-{target}{rho}"
grid:
  pattern: [b, a]
  target:
    50: {steps: 5}
    slow: {steps: 50, options: {budget: output}}
  rho: {-low: 1.0, -high: 2.5}
limit: 7
"""


def test_a_run_file_is_one_run_with_the_defaults_that_it_leaves(project):
    text = "rho: 2\noptions: {damping: 1.0e-3}\nlimit: 5\npattern: '2:4'"
    project.run_file("b.yaml", text)
    project.run_file("a.yaml", "# all defaults\n")
    first, second = read_plan("p")
    assert (first.name, first.parameters) == ("a", {})
    expected = {"rho": 2, "options": {"damping": 0.001}, "limit": 5, "pattern": "2:4"}
    assert second.parameters == expected
    assert second.effective["steps"] == 3
    assert "record_path" not in second.effective


def test_what_a_tool_leaves_beside_run_files_is_none(project):
    """JupyterLab writes a checkpoint beside a file as soon as the file is shown."""
    path = project.run_file("a.yaml")
    for folder in (path.parent, path.parent.parent, project.folder / "runs"):
        (folder / ".ipynb_checkpoints").mkdir()
        (folder / ".ipynb_checkpoints/a-checkpoint.yaml").write_text("")
    path.with_name(".a.yaml.swp").write_text("")
    assert [run.name for run in read_plan("p")] == ["a"]
    assert plan_names() == ["p"]


@pytest.mark.parametrize(
    "default, text, expected",
    [
        ("unstructured", "pattern: '2:4'", (None, "2:4")),
        ("unstructured", "pattern: unstructured", (0.6, "unstructured")),
        # both are as written
        ("unstructured", "pattern: '2:4'\nsparsity: 0.6", (0.6, "2:4")),
        ("2:4", "sparsity: 0.6", (0.6, "unstructured")),
    ],
)
def test_a_pattern_and_a_sparsity_replace_each_others_default(
    default, text, expected, project
):
    cell = PARAMETERS.replace("unstructured", default)
    project.notebook(cell + "sparsity: float | None = 0.6\n")
    project.run_file("a.yaml", text)
    (run,) = read_plan("p")
    assert (run.effective["sparsity"], run.effective["pattern"]) == expected


def test_a_grid_stands_for_the_product_of_its_axes(project):
    project.run_file("any.yaml", GRID)
    project.run_file("plain.yaml")
    runs = {run.name: run.parameters for run in read_plan("p")}
    names = "a-50-high a-50-low a-slow-high a-slow-low b-50-high b-50-low"
    assert list(runs) == [*names.split(), "b-slow-high", "b-slow-low", "plain"]
    slow = {"steps": 50, "options": {"budget": "output"}}
    assert runs["b-slow-high"] == {"pattern": "b", **slow, "rho": 2.5, "limit": 7}
    assert runs["a-50-low"] == {"pattern": "a", "steps": 5, "rho": 1.0, "limit": 7}
    numbers = {"*slow-low": 2, "01_work/plain": 1, "*--plain": 1, "01*": 9}
    # several, of which one run counts once
    numbers |= {"*slow-low 01_work/plain": 3, "a-50-low a-*": 4}
    assert {only: len(read_plan("p", only)) for only in numbers} == numbers
    for only in ("slow", "low*"):  # a part of a name, to be tried as it is said
        error = project.error("run", "--only", only)
        assert read_plan("p", re.search("ONLY='(.*)'", error)[1])
    assert "ONLY=" not in project.error("run", "--only", "fast")
    for only in ("plain fast", " "):
        assert "has no run" in project.error("run", "--only", only)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("roh: 0.5", "did you mean 'rho'"),
        ("rho: 1e-3", "write 1.0e-3"),
        ("pattern: 2:4", "quotes"),
        ("record_path: x.json", "record_path"),
        (
            "rho: !!python/object/apply:os.getcwd []",
            "could not determine a constructor",
        ),
        ("name: x-{rho}", "parameter 'name'"),
        ('name: "{roh}"\ngrid: {rho: [1.0]}', "'roh'"),
        ('name: "{rho}"\ngrid: {rho: 1.0}', "grid cannot be read"),
        ('name: "{rho}"\ngrid: {rho: [1.0, 1.0]}', "run 1.0 is there already"),
        (f'name: "{"x" * 101}{{rho}}"\ngrid: {{rho: [1]}}', "up to 100 letters"),
        ('name: "{rho}"\ngrid: {rho: [1.0]}\nrho: 2.0', "rho is set twice"),
        ("rho: 1.0\nsteps: 2\nrho: 2.0", "'rho' is written twice"),
        ('name: "{a}"\ngrid: {a: {x: {rho: 1.0}, x: {rho: 2.0}}}', "'x' is written"),
        ('name: "{a}"\ngrid: {a: {x: {rho: high}}}', "run x: rho = 'high'"),
    ],
)
def test_wrong_run_file_is_one_line(text, reason, project):
    project.run_file("a.yaml", text)
    err = project.error("run")
    assert reason in err
    assert "p/01_work/a.yaml" in err
    assert not project.result("").exists()


@pytest.mark.parametrize("cell", ["total = 2 * rho", "sizes = (1, 2)", "a = b = 1"])
def test_notebooks_papermill_would_misread(cell, project):
    project.notebook(PARAMETERS + cell)
    project.run_file("a.yaml")
    error = project.error("run")
    assert repr(cell) in error
    assert "'name = literal'" in error
    folder = project.folder / "notebooks"
    write_notebook(folder, "01_work", ["a = 1"] * 2, [["parameters"]] * 2)
    assert "2 parameters cells" in project.error("run")


def test_the_tables_notebook_is_last_and_names_its_own_plan(project):
    for name in (TABLES, "10_late"):
        project.notebook(PARAMETERS + 'plan = "p"\nsource = "results"\n', name=name)
        project.run_file("a.yaml", notebook=name)
    assert [run.notebook for run in read_plan("p")] == ["10_late", TABLES]
    project.run_file("a.yaml", "plan: q\nsource: reference", notebook=TABLES)
    assert read_plan("p")[-1].effective["plan"] == "q"
    project.run_file("a.yaml", "plan: q", notebook=TABLES)
    with pytest.raises(RunError, match="plan = 'q'"):
        read_plan("p")


# --- the committed plans -------------------------------------------------------------------


@pytest.mark.parametrize("plan", ["laptop", "second", "full", "beyond"])
def test_plans_are_those_of_the_committed_records(plan):
    if (reference_dir(plan) / "earlier.txt").is_file():
        pytest.skip("these records are of earlier code, as README says")
    records = read_records(reference_dir(plan) / "records")
    runs = {run.id: run for run in read_plan(plan)}
    # each is of a run of the plan; a large plan may have runs that are yet to be made
    for record in records:
        run = runs.pop(f"{record['notebook']}--{record['name']}")
        assert same_run(
            {"notebook": run.notebook, "parameters": run.effective},
            record,
            run.defaults,
        )
    assert not runs or plan in ("full", "beyond", "second")
