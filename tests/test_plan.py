"""Run files and the runs they stand for; the committed plans, t4 and paper on a tiny model."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import pytest
import small_project
from helpers.runner.costs import plan_lines
from small_project import PARAMETERS, Project, write_notebook

from helpers.errors import RunError
from helpers.paths import reference_dir, replace_file
from helpers.report import write_tables
from helpers.report.records import read_record, read_records
from helpers.runner import plan as plans
from helpers.runner import schedule
from helpers.runner.fingerprint import fingerprint, is_done
from helpers.runner.parameters import code_cells
from helpers.runner.plan import Run, read_plan

project = small_project.project
PRUNE, ZERO_SHOT, TABLES = "04_prune_model", "05_zero_shot", "06_tables_and_plots"


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


def test_a_run_file_is_one_run_with_the_defaults_that_it_leaves(project: Project) -> None:
    project.run_file("b.yaml", "rho: 2\noptions: {damping: 1.0e-3}\nlimit: 5\npattern: '2:4'")
    project.run_file("a.yaml", "# all defaults\n")
    first, second = read_plan("p")
    assert (first.name, first.parameters) == ("a", {})
    expected = {"rho": 2, "options": {"damping": 0.001}, "limit": 5, "pattern": "2:4"}
    assert second.parameters == expected
    assert second.effective["steps"] == 3 and "record_path" not in second.effective


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


def test_a_timed_run_is_alone_and_its_record_says_so(project: Project) -> None:
    project.run_file("a.yaml")
    assert project.call("run")[0] == 0
    (before,) = read_plan("p")
    assert is_done(before) and "timed" not in read_record(before.record_path)
    project.run_file("a.yaml", "timed: true")
    (timed,) = read_plan("p")
    assert timed.timed and timed.effective == before.effective
    assert fingerprint(timed) == fingerprint(before) and not is_done(timed)
    assert project.call("run")[0] == 0
    assert is_done(timed) and is_done(before) and read_record(timed.record_path)["timed"] is True


@pytest.mark.usefixtures("project")
def test_nothing_runs_beside_a_timed_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pool:
        """Ends the older of the runs under way at each look, and notes who runs beside whom."""

        slots, running, seen = 2, [], []

        def start(self, run: Run, active: int) -> SimpleNamespace | None:
            if active == self.slots:
                return None
            replace_file(run.job_path, "")  # as `prepare` does
            self.running.append(run.name)
            self.seen.append("".join(self.running))
            return SimpleNamespace(ended=lambda: self.ended(run.name), error=lambda: None)

        def ended(self, name: str) -> bool:
            if self.running[0] == name:
                self.running.remove(name)
                return True
            return False

    monkeypatch.setattr(schedule, "POLL_SECONDS", 0)
    runs = [Run("p", "01", name, {}, {}, timed=name in "BD") for name in "aBcDef"]
    assert schedule.Runner(runs, runs, pool := Pool()).execute(runs) == []
    together = [seen for seen in pool.seen if set("BD") & set(seen)]
    assert sorted(together) == ["B", "D"] and max(map(len, pool.seen)) == 2


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
        (f"rho: {'[' * 2000}{']' * 2000}", "nested too deeply"),
        ("options: &all {deep: *all}", "aliases (*name) are not allowed"),
        ("- 1", "not a mapping"),
        ("rho: !!python/object/apply:os.getcwd []", "cannot be read"),
        ("name: x-{rho}", "parameter 'name' is not in the parameters cell"),
        ("timed: 1", "timed = 1 is not possible: write true or false"),
        ("grid: {rho: [1.0]}", "'rho' must appear both in name and in grid: write for example"),
        ('name: "{roh}"\ngrid: {rho: [1.0]}', "'rho' must appear both in name and in grid"),
        ('name: "{rho}"\ngrid: {rho: 1.0}', "rho in the grid is not a list or a mapping"),
        ('name: "{rho}"\ngrid: [rho]', "grid is not a mapping"),
        ('name: "{rho}"\ngrid: {rho: [1.0, 1.0]}', "run 1.0 is in a.yaml already"),
        ('name: "{rho}{steps}"\ngrid: {rho: [1, 11], steps: [11, 1]}', "run 111 is in a.yaml"),
        ('name: "{fast}"\ngrid: {fast: [true]}', "write 'label: value'"),
        ('name: "{pattern}"\ngrid: {pattern: [a/b]}', "'a/b' is no name"),
        (f'name: "{"x" * 101}{{rho}}"\ngrid: {{rho: [1]}}', "up to 100 letters"),
        ('name: "x y {rho}"\ngrid: {rho: [1.0]}', "'x y 1.0' is no name"),
        ('name: "{rho}"\ngrid: {rho: [1.0]}\nrho: 2.0', "rho is set twice"),
        ('name: "{a}{rho}"\ngrid: {a: {x: {rho: 1.0}}, rho: [2.0]}', "rho is set twice"),
        ('name: "{a}"\ngrid: {a: {x: {rho: high}}}', "run x: rho = 'high' is of type str"),
        ('name: "{a}"\ngrid: {a: {x: {5: 1}}}', "parameter 5 is not in"),
    ],
)
def test_wrong_run_file_is_one_line(text: str, reason: str, project: Project) -> None:
    project.run_file("a.yaml", text)
    err = project.error()
    assert reason in err and "p/01_work/a.yaml" in err
    assert not project.result("").exists()


def test_wrong_plan_place_notebook_and_pattern(project: Project) -> None:
    def refused(match: str, plan: str = "p", only: str | None = None) -> None:
        with pytest.raises(RunError, match=match):
            read_plan(plan, only)

    (project.folder / "runs" / "empty").mkdir(parents=True)
    refused("did you mean 'empty'", "emptyy")
    refused("plan empty has no run files", "empty")
    wrong = [project.run_file("a.yml"), project.run_file("a.yaml", notebook="01_wrok")]
    refused("out of place")
    wrong[0].unlink()
    refused("did you mean '01_work'")
    wrong[1].unlink()
    project.run_file("a b.yaml").rename(project.run_file("a.yaml").with_name("a&b.yaml"))
    refused("'a&b' is no name")
    (project.folder / "runs" / "p" / "01_work" / "a&b.yaml").unlink()
    project.run_file("my-method-60.yaml")
    for only in ("01_work/a", "*--a", "a"):
        assert [run.name for run in read_plan("p", only)] == ["a"]
    assert len(read_plan("p", "01*")) == 2
    for only in ("*my-metod-60*", "01_work/my-metod-60"):
        refused("01_work/a, .*did you mean .*my-method-60'", only=only)


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ([PARAMETERS + "total = 2 * rho"], "derived"),
        ([PARAMETERS + "sizes = (1, 2)"], "use a list"),
        ([PARAMETERS + "import os"], "not 'name = value'"),
        ([PARAMETERS + "a = b = 1"], "not 'name = value'"),
        ([PARAMETERS + "a: int"], "not 'name = value'"),
        (["a ="], "not Python"),
        (["a = '\0'"], "not Python"),
        ([PARAMETERS + "a = {[]: 1}"], "derived"),
        (["a = 1"], "no record_path"),
        ([PARAMETERS, "b = 1"], "2 parameters cells"),
        ([PARAMETERS, "1/0"], "raises-exception"),
    ],
)
def test_notebooks_papermill_would_misread(cells: list[str], reason: str, project: Project) -> None:
    tags = [["raises-exception"] if source == "1/0" else ["parameters"] for source in cells]
    write_notebook(project.folder / "notebooks", "01_work", cells, tags)
    project.run_file("a.yaml")
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
TEXT = {"evaluation": "wikitext2", "window": 2048, "windows": 0}


def expected_runs(plan: str) -> dict[str, dict[str, Any]]:
    """What each run of a plan for GPUs has to set beside its model, by run."""
    paper, runs = plan == "paper", {}
    methods = METHODS if paper else ("wanda", "sparsegpt", "admm-grad")
    targets = TARGETS if paper else ("50", "60", "2of4")
    for short in LLAMA if paper else SMALL:
        base = {"calibration": "c4", "sequences": 128 if paper else 64, "length": 2048}
        base["dtype"] = "float16" if paper else SMALL[short]
        pruned = base | TEXT | ({"second_window": LLAMA[short]} if paper else {})
        cells = {"dense": ("dense", "unstructured", 0.0, 0)}
        for method, label in itertools.product(methods, targets):
            cells[f"{method}-{label}"] = (method, *TARGETS[label], 0)
        if short in ("llama-7b", "llama-2-7b"):
            for method, seed in itertools.product(METHODS[1:], (1, 2)):
                cells[f"{method}-60-seed{seed}"] = (method, *TARGETS["60"], seed)
        names = ("method", "pattern", "sparsity", "calibration_seed")
        for name, cell in cells.items():
            runs[f"{PRUNE}--{short}-{name}"] = pruned | dict(zip(names, cell, strict=True))
        tasks = {"tasks": TASKS, "limit": 0 if paper else 100, "batch": 16 if paper else 8}
        tasks["source"] = "hub" if paper else "embedded"
        for method in (
            () if short.startswith("smol") else ("dense", "wanda", "sparsegpt", METHODS[-1])
        ):
            name, sparsity = ("dense", 0.0) if method == "dense" else (f"{method}-50", 0.5)
            cell = {"method": method, "sparsity": sparsity}
            runs[f"{ZERO_SHOT}--{short}-{name}"] = base | tasks | cell
    return runs | {f"{TABLES}--tables": {"plan": plan, "source": "results"}}


def test_the_plan_original_is_the_plan_laptop_on_the_published_model() -> None:
    there = {run.id: run for run in read_plan("laptop")}
    runs = read_plan("original")
    revision = runs[0].effective["revision"]
    assert {run.id for run in runs} == set(there) - {"07_your_own_method--my-method-60"}
    for run in runs:
        published = {"model": "HuggingFaceTB/SmolLM2-135M-Instruct", "revision": revision}
        other = {"plan": "original"} if run.notebook == TABLES else published
        assert run.effective == there[run.id].effective | other
    assert len(revision) == 40
    assert not reference_dir("original").exists()
    lines = plan_lines(runs, "laptop")
    assert not any("missing:" in line and "nothing" not in line for line in lines)
    assert sum(" h" in line and "SmolLM2-135M-Instruct" in line for line in lines) == 23


@pytest.mark.parametrize(("plan", "number"), [("t4", 25), ("paper", 157)])
def test_the_grids_for_gpus_are_complete(plan: str, number: int) -> None:
    expected = expected_runs(plan)
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
