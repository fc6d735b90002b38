"""Run files and the runs they stand for; the committed plans, t4 and paper on a tiny model."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import small_project
from small_project import PARAMETERS, Project, write_notebook

from helpers.errors import RunError
from helpers.paths import notebooks_dir, reference_dir
from helpers.records import read_record, read_records
from helpers.results import write_tables
from helpers.runner import plan as plans
from helpers.runner.parameters import code_cells
from helpers.runner.plan import Run, read_plan

project = small_project.project
PRUNE, ZERO_SHOT, TABLES = "04_prune_model", "05_zero_shot", "06_tables_and_plots"


# --- run files -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("roh: 0.5", "did you mean 'rho'"),
        ("zzz: 0.5", "choose one of fast, limit"),
        ("rho: 1e-3", "write 1.0e-3"),
        ("rho: true", "bool"),
        ("steps: 2.5", "give int"),
        ("pattern: 2:4", "quotes"),
        ("pattern: null", "give str"),
        ("options: {damping: [1e-3]}", "with a point"),
        ("options: {day: 2026-01-01}", "put the text in quotes"),
        ("limit: [1]", "give None or float or int or str"),
        ("record_path: x.json", "set by the runner"),
        ("preset: auto", "name the parameters themselves"),
        ("rho: 1.0\nrho: 2.0", "'rho' is given twice"),
        ("rho: [1", "cannot be read in line"),
        ("- 1", "not a mapping"),
        ("rho: !!python/object/apply:os.getcwd []", "cannot be read"),
    ],
)
def test_wrong_run_file_is_one_line(text: str, reason: str, project: Project) -> None:
    project.run_file("a.yaml", text)
    err = project.error()
    assert reason in err and "p/01_work/a.yaml" in err
    assert not project.result("").exists()


def test_good_run_files_are_accepted(project: Project) -> None:
    project.run_file("b.yaml", "rho: 2\noptions: {damping: 1.0e-3}\nlimit: 5\npattern: '2:4'")
    project.run_file("a.yaml", "# all defaults\n")
    first, second = read_plan("p")
    assert (first.name, first.parameters) == ("a", {})
    expected = {"rho": 2, "options": {"damping": 0.001}, "limit": 5, "pattern": "2:4"}
    assert second.parameters == expected
    assert second.effective["steps"] == 3 and "record_path" not in second.effective


def test_files_out_of_place_and_every_wrong_file_counted(project: Project) -> None:
    project.run_file("a.yaml", "roh: 1.0")
    path = project.run_file("b.yaml", "roh: 1.0")
    with pytest.raises(RunError, match="a.yaml.*and 1 more"):
        read_plan("p")
    project.run_file("a.yaml")
    path.rename(path.with_suffix(".yml"))
    with pytest.raises(RunError, match="out of place"):
        read_plan("p")
    path.with_suffix(".yml").unlink()
    project.run_file("a.yaml", notebook="01_wrok")
    with pytest.raises(RunError, match="did you mean '01_work'"):
        read_plan("p")


def test_unknown_plan_empty_plan_and_no_match(project: Project) -> None:
    (project.folder / "runs" / "empty").mkdir(parents=True)
    with pytest.raises(RunError, match="did you mean 'empty'"):
        read_plan("emptyy")
    with pytest.raises(RunError, match="plan empty has no run files"):
        read_plan("empty")
    project.run_file("a.yaml")
    project.run_file("my-method-60.yaml")
    for only in ("01_work/a", "*--a", "a"):
        assert [run.name for run in read_plan("p", only)] == ["a"]
    assert len(read_plan("p", "01*")) == 2
    for only in ("*my-metod-60*", "01_work/my-metod-60"):
        with pytest.raises(RunError, match="01_work/a, .*did you mean .*my-method-60'"):
            read_plan("p", only)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("total = 2 * rho", "derived"),
        ("sizes = (1, 2)", "use a list"),
        ("import os", "not 'name = value'"),
        ("a = b = 1", "not 'name = value'"),
        ("a: int", "not 'name = value'"),
        ("a =", "not Python"),
    ],
)
def test_parameters_cell_holds_literals_only(line: str, reason: str, project: Project) -> None:
    project.notebook(PARAMETERS + line)
    project.run_file("a.yaml")
    with pytest.raises(RunError, match=reason):
        read_plan("p")


def test_notebooks_papermill_would_misread(project: Project) -> None:
    project.run_file("a.yaml")
    one, two = ["parameters"], ["raises-exception"]
    for cells, tags, reason in [
        (["a = 1", "b = 1"], [one, one], "2 parameters cells"),
        (["record_path = ''", "1/0"], [one, two], "raises-exception"),
        (["a = 1"], [one], "no record_path"),
    ]:
        write_notebook(project.folder / "notebooks", "01_work", cells, tags)
        with pytest.raises(RunError, match=reason):
            read_plan("p")


def test_the_tables_notebook_is_last_and_names_its_own_plan(project: Project) -> None:
    for name in (TABLES, "10_late"):
        project.notebook(PARAMETERS + 'plan = "p"\n', name=name)
        project.run_file("a.yaml", notebook=name)
    assert [run.notebook for run in read_plan("p")] == ["10_late", TABLES]
    project.run_file("a.yaml", "plan: q", notebook=TABLES)
    with pytest.raises(RunError, match="plan = 'q'"):
        read_plan("p")


# --- grids ---------------------------------------------------------------------------------

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


def test_a_grid_stands_for_the_product_of_its_axes(project: Project) -> None:
    project.run_file("any.yaml", GRID)
    project.run_file("plain.yaml")
    runs = {run.name: run.parameters for run in read_plan("p")}
    names = [f"{a}-{b}-{c}" for a, b, c in itertools.product("ab", ["50", "slow"], ["high", "low"])]
    assert list(runs) == [*names, "plain"]
    slow = {"steps": 50, "options": {"budget": "output"}}
    assert runs["b-slow-high"] == {"pattern": "b", **slow, "rho": 2.5, "limit": 7}
    assert runs["a-50-low"] == {"pattern": "a", "steps": 5, "rho": 1.0, "limit": 7}
    assert [run.name for run in read_plan("p", "*slow-low")] == ["a-slow-low", "b-slow-low"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("grid: {rho: [1.0]}", "'rho' must appear both in name and in grid: write for example"),
        ('name: "{roh}"\ngrid: {rho: [1.0]}', "'rho' must appear both in name and in grid"),
        ("name: x-{rho}", "parameter 'name' is not in the parameters cell"),
        ('name: "{rho}"\ngrid: {rho: 1.0}', "rho in the grid is not a list or a mapping"),
        ('name: "{rho}"\ngrid: [rho]', "grid is not a mapping"),
        ('name: "{rho}"\ngrid: {rho: [1.0, 1.0]}', "rho 1.0 is given twice"),
        ('name: "{fast}"\ngrid: {fast: [true]}', "write 'label: value'"),
        ('name: "{pattern}"\ngrid: {pattern: [a/b]}', "'a/b' cannot be part of a name"),
        ('name: "x y {rho}"\ngrid: {rho: [1.0]}', "'x y 1.0' is no name"),
        ('name: "{rho}"\ngrid: {rho: [1.0]}\nrho: 2.0', "rho is set twice"),
        ('name: "{a}{rho}"\ngrid: {a: {x: {rho: 1.0}}, rho: [2.0]}', "rho is set twice"),
        (
            'name: "{rho}{steps}"\ngrid: {rho: [1, 11], steps: [11, 1]}',
            "run 111 is in a.yaml already",
        ),
        ('name: "{a}"\ngrid: {a: {x: {rho: high}}}', "run x: rho = 'high' is of type str"),
        ('name: "{a}"\ngrid: {a: {x: {5: 1}}}', "parameter 5 is not in"),
    ],
)
def test_a_wrong_grid_is_refused(text: str, reason: str, project: Project) -> None:
    project.run_file("a.yaml", text)
    err = project.error("list")
    assert reason in err and "p/01_work/a.yaml" in err


def test_two_runs_with_one_name_are_refused(project: Project) -> None:
    project.run_file("b.yaml", 'name: "x{rho}"\ngrid: {rho: {1: 1.0, 2: 2.0}}')
    project.run_file("x2.yaml")
    with pytest.raises(RunError, match=r"p/01_work/x2.yaml: run x2 is in b.yaml already"):
        read_plan("p")


# --- the committed plans -------------------------------------------------------------------


@pytest.mark.parametrize("plan", ["laptop", "full"])
def test_plans_are_those_of_the_committed_records(plan: str) -> None:
    """A record of before a parameter was added meant the parameter's default."""
    runs = {run.id: run for run in read_plan(plan)}
    records = {
        f"{record['notebook']}--{record['name']}": record["parameters"]
        for record in read_records(reference_dir(plan) / "records")
    }
    assert set(runs) == set(records)
    for key, run in runs.items():
        since = {name: run.defaults[name] for name in run.effective if name not in records[key]}
        assert run.effective == since | records[key], key


def test_the_plan_smoke_runs_every_notebook() -> None:
    runs = read_plan("smoke")
    assert len(runs) == 10
    assert {run.notebook for run in runs} == {path.stem for path in notebooks_dir().glob("*.ipynb")}


LLAMA = {"llama-7b": 0, "llama-2-7b": 4096, "llama-2-13b": 4096, "llama-2-70b": 4096}
# the second was trained in bfloat16, which a T4 does not have
SMALL = {"tinyllama-1.1b": "float16", "smollm2-1.7b": "float32"}
METHODS = ("magnitude", "wanda", "sparsegpt", "admm1", "admm-grad")
TARGETS = {
    "50": ("unstructured", 0.5),
    "60": ("unstructured", 0.6),
    "70": ("unstructured", 0.7),
    "80": ("unstructured", 0.8),
    "2of4": ("2:4", 0.5),
    "4of8": ("4:8", 0.5),
}
TASKS = ["boolq", "rte", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa"]


def cells(plan: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Id and parameters, without the model's, of each run of a plan for GPUs."""
    paper = plan == "paper"
    text = {"evaluation": "wikitext2", "window": 2048, "windows": 0}
    shared = {"calibration": "c4", "sequences": 128 if paper else 64, "length": 2048}
    tasks = {"tasks": TASKS, "limit": 0 if paper else 100, "batch": 16 if paper else 8}
    tasks["source"] = "hub" if paper else "embedded"
    methods = METHODS if paper else ("wanda", "sparsegpt", "admm-grad")
    targets = list(TARGETS) if paper else ["50", "60", "2of4"]
    for short in LLAMA if paper else SMALL:
        base = shared | {"dtype": "float16" if paper else SMALL[short]}
        pruned = base | text | ({"second_window": LLAMA[short]} if paper else {})
        dense = {"method": "dense", "pattern": "unstructured", "sparsity": 0.0}
        yield f"{PRUNE}--{short}-dense", pruned | dense
        for method, label in itertools.product(methods, targets):
            pattern, sparsity = TARGETS[label]
            cell = pruned | {"method": method, "pattern": pattern, "sparsity": sparsity}
            yield f"{PRUNE}--{short}-{method}-{label}", cell
            if short in ("llama-7b", "llama-2-7b") and label == "60" and method != "magnitude":
                for seed in (1, 2):
                    name = f"{PRUNE}--{short}-{method}-60-seed{seed}"
                    yield name, cell | {"calibration_seed": seed}
        for method in () if short.startswith("smol") else ("dense", *METHODS[1:3], METHODS[4]):
            cell = base | tasks | {"method": method, "sparsity": 0.0 if method == "dense" else 0.5}
            yield f"{ZERO_SHOT}--{short}-{method}{'' if method == 'dense' else '-50'}", cell
    yield f"{TABLES}--tables", {"plan": plan, "source": "results"}


@pytest.mark.parametrize(("plan", "number"), [("t4", 25), ("paper", 157)])
def test_the_grids_for_gpus_are_complete(plan: str, number: int) -> None:
    expected = dict(cells(plan))
    runs = {run.id: run for run in read_plan(plan)}
    assert set(runs) == set(expected) and len(runs) == number
    models = set()
    for key, run in runs.items():
        named = {k: v for k, v in run.effective.items() if k in ("model", "revision")}
        defaults = {k: v for k, v in run.defaults.items() if k in run.effective}
        assert run.effective == defaults | expected[key] | named, key
        models |= {tuple(named.values())} if named else set()
    assert len(models) == len(LLAMA if plan == "paper" else SMALL), "a revision for each model"
    assert all(len(revision) == 40 for _, revision in models)


def test_what_a_plan_downloads() -> None:
    def needs(**asked: object) -> list[str]:
        return plans.assets_needed([Run("p", "01", "a", {}, asked)])

    assert needs(model="embedded", calibration="c4", evaluation="wikitext2") == ["model"]
    assert needs(model="tiny", calibration="embedded") == ["model", "c4"]
    assert needs(model="owner/name", calibration="c4", tasks=[], source="hub") == []
    assert needs(tasks=["rte"], source="embedded") == ["tasks"]
    assert needs(plan="laptop", source="reference") == []


def test_a_cell_of_the_papers_main_table_on_a_tiny_model(tmp_path: Path) -> None:
    """Its notebook, in this process, with what the run file says but for sizes and texts."""
    matplotlib.use("Agg")
    (run,) = read_plan("paper", f"{PRUNE}/llama-2-7b-wanda-2of4")
    smaller = {"model": "tiny", "revision": "", "dtype": "float32", "device": "cpu"}
    smaller |= {"sequences": 4, "length": 64, "window": 64, "windows": 4, "second_window": 128}
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Line {number} says something of its own.\n" for number in range(200)))
    smaller |= {"calibration": str(text), "evaluation": str(text)}
    path = tmp_path / f"{run.id}.json"
    given = run.effective | smaller | {"record_path": str(path), "preset": ""}
    assert set(given) == set(run.defaults), "a change may only replace what the run file could"
    names: dict[str, Any] = {"__name__": "__main__"}
    for source, tags in code_cells(run.source_path):
        if "colab-setup" not in tags:
            exec(compile(source, run.notebook, "exec"), names)
        if "parameters" in tags:
            names |= given
    record = read_record(path)
    assert record["metrics"]["sparsity"]["value"] == 0.5 and len(record["layers"]) == 14
    for name in ("perplexity", "perplexity_128"):  # random weights guess among 49 152 tokens
        assert 1e4 < record["metrics"][name]["value"] < 1e6
    written = write_tables([record], tmp_path / "tables")
    assert {"perplexity.md", "cost.md"} <= {path.name for path in written}
