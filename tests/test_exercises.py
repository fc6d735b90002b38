"""Notebooks run cell by cell: their records, solutions of exercises, and cells that fail."""

import ast
import collections
import functools
import html
import math
import re
import shutil
from contextlib import closing
from unittest import mock

import nbformat
import pytest
import torch
from shell import Shell

from book.drawings import admm_steps
from helpers import cubic_schedule, select
from helpers.errors import BadParameter, RunError
from helpers.paper.admm import admm, gradual_mask
from helpers.paper.methods import METHODS
from helpers.paths import TABLES_NOTEBOOK, notebooks_dir, results_dir, root
from reproduction.cell_order import needs_and_binds
from reproduction.plan import read_plan
from reproduction.records import read_record

NOTEBOOKS = sorted(path.stem for path in notebooks_dir().glob("*.ipynb"))
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
# metrics that tables, claims and the notebooks' texts are about
METRICS = {
    "00_start_here": "perplexity_dense perplexity_magnitude perplexity_admm-grad",
    "01_calibration_capture": "tokens condition_down_proj largest_input_q_proj",
    "02_admm_layer_solve": "error_admm error_optimum distance_to_optimum",
    "03_mask_schedule": "paper_unstructured paper_2:4 paper_4:8 released_unstructured",
    "04_prune_model": "perplexity sparsity prune_seconds evaluate_seconds peak_memory",
    "05_zero_shot": "winogrande_acc openbookqa_acc_norm mean_acc prune_seconds",
    "06_tables_and_plots": "records",
    "07_your_own_method": "perplexity mean_layer_error prune_seconds",
    "08_beyond_the_paper": "perplexity perplexity_web perplexity_layers perplexity_web_layers "
    "perplexity_dense perplexity_web_dense prune_seconds repair_seconds total_seconds",
    "09_use_it": "perplexity perplexity_read_back perplexity_int8 zeros_moved",
}
# notebook → the cell that prunes
PRUNES = {
    "00_start_here": "prune",
    "04_prune_model": "prune",
    "05_zero_shot": "prune",
    "07_your_own_method": "model",
    "08_beyond_the_paper": "prune",
}


def test_the_projection_that_03_shows_is_a_gradual_mask():
    text = (notebooks_dir() / "03_mask_schedule.ipynb").read_text("utf-8")
    cells = nbformat.reads(text, 4).cells
    (code,) = (
        code
        for cell in cells
        if cell.cell_type == "markdown"
        for code in CODE.findall(cell.source)
        if code.startswith("def project")
    )
    names = {"select": select, "cubic_schedule": cubic_schedule}
    names |= {"mask_steps": 15, "sparsity": 0.6}
    exec(code, names)
    torch.manual_seed(0)
    weight, inputs = torch.randn(8, 12), torch.randn(40, 12)
    gram = inputs.T @ inputs / 40 + torch.eye(12)
    shown = admm(weight, gram, names["project"])
    assert torch.equal(shown, admm(weight, gram, gradual_mask(0.6)))


class Kernel(Shell):
    """A notebook whose cells are run one by one, with the parameters of a smoke run that prunes.

    The explorers' cells are left out, since they are slow and nothing follows from them, and its
    texts are the project's own, which are tokenised sooner than the embedded ones.
    """

    def __init__(self, notebook, folder, **changed):
        runs = [run for run in read_plan("smoke") if run.notebook == notebook]
        run = next(run for run in runs if run.effective.get("method") != "dense")
        text = shutil.copy(root() / "CHANGES.md", folder / "text.txt")
        named = {"calibration", "evaluation"} & set(run.effective)
        self.parameters = run.parameters | dict.fromkeys(named, str(text)) | changed
        self.notebook = notebook
        super().__init__(folder)
        book = nbformat.read(notebooks_dir() / f"{notebook}.ipynb", as_version=4)
        self.code = {
            cell.id: cell.source
            for cell in book.cells
            if cell.cell_type == "code" and cell.id != "colab-setup"
        }
        (self.exercises,) = (c.source for c in book.cells if c.id == "exercises")

    def run_cells(self, first, last="record"):
        """Run the cells from one to another."""
        order = list(self.code)
        for cell in order[order.index(first) : order.index(last) + 1]:
            if not cell.startswith("explorer"):
                self.run(self.code[cell])
            if cell == "parameters":
                self.names.update(self.parameters)


@pytest.fixture(scope="module")
def kernel(request, tmp_path_factory):
    """The notebook of the parameter, after its last cell."""
    changed = {}
    if (
        request.param == TABLES_NOTEBOOK
    ):  # the smoke plan's own records may not be there
        changed = {"plan": "laptop", "source": "reference"}
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch, mock.patch.dict(METHODS):
        patch.setenv("PRUNING_RESULTS", str(folder))
        with closing(Kernel(request.param, folder, **changed)) as notebook:
            notebook.run_cells("parameters")
            yield notebook


@pytest.mark.parametrize("kernel", NOTEBOOKS, indirect=True)
def test_record(kernel):
    notebook = kernel.notebook
    (path,) = (results_dir("scratch") / "records").glob(f"{notebook}--*.json")
    record = read_record(path)
    assert record["notebook"] == notebook
    assert kernel.parameters.items() <= record["parameters"].items()
    assert set(record["metrics"]) >= set(METRICS[notebook].split())
    assert all(math.isfinite(metric["value"]) for metric in record["metrics"].values())
    assert (record["model"] is None) == (notebook == TABLES_NOTEBOOK)


@pytest.mark.parametrize("kernel", NOTEBOOKS, indirect=True)
def test_solutions_run(kernel, capsys):
    assert kernel.exercises.count("<summary>Solution</summary>") >= 3
    for code in CODE.findall(kernel.exercises):
        capsys.readouterr()
        kernel.run(code)
        assert capsys.readouterr().out, f"nothing to see: {code}"
    # no solution takes back a result that the record needs
    kernel.run_cells("record")
    # in the same kernel again: no name of the notebook is taken for a misspelt parameter
    (opening,) = (cell for cell, code in kernel.code.items() if "open_run(" in code)
    kernel.run_cells(opening, opening)


@pytest.mark.parametrize("kernel", ["02_admm_layer_solve"], indirect=True)
def test_why_u_is_as_in_the_drawing(kernel):
    kernel.run_cells("why", "why")
    for with_u, table in zip((1, 0), kernel.names["panels"].values(), strict=True):
        *W, U = admm_steps(with_u=with_u)[5]
        assert table.values[5] == pytest.approx([1 + 0.48 / 1.1, *W, 0, U])


@pytest.mark.parametrize("kernel", PRUNES, indirect=True)
def test_after_an_interrupt_nothing_goes_by_a_methods_name(kernel):
    """The cells that follow say which to run; a record holds the right numbers, or is not there."""
    kernel.run_cells("parameters")
    (path,) = (results_dir("scratch") / "records").glob(f"{kernel.notebook}--*.json")
    whole = read_record(path)["metrics"]
    path.unlink()
    pruning = PRUNES[kernel.notebook]
    names = kernel.names
    function = "prune_loaded" if "prune_loaded" in names else "prune_model"
    prune = names[function]

    def stop(done, *_):
        if done > 9:  # in the second block, since each has seven layers
            raise KeyboardInterrupt

    names[function] = functools.partial(prune, progress=stop)
    with pytest.raises(KeyboardInterrupt):
        kernel.run_cells(pruning, pruning)
    cells = list(kernel.code)
    for later in cells[cells.index(pruning) + 1 :]:  # explorers too
        with pytest.raises(RunError, match="run the cells under"):
            kernel.run(kernel.code[later])
    assert not path.exists()
    names[function] = prune
    kernel.run_cells(pruning)
    kernel.run_cells(pruning)  # twice does not prune twice
    for name, metric in read_record(path)["metrics"].items():
        assert metric["unit"] != "1" or metric == whole[name]
    names["sparsity"] = 0.35  # rows of another sparsity would stand in one table
    with pytest.raises(BadParameter, match="0.35"):
        kernel.run_cells(pruning, pruning)


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_each_result_has_one_cell(notebook):
    """Else running one cell again would take back what was made from another."""
    book = nbformat.read(notebooks_dir() / f"{notebook}.ipynb", as_version=4)
    codes = [cell.source for cell in book.cells if cell.cell_type == "code"]
    (opening,) = (place for place, code in enumerate(codes) if "open_run(" in code)
    names = [needs_and_binds(ast.parse(code)) for code in codes[opening + 1 :]]
    bound = collections.Counter(name for _, binds in names for name in binds)
    assert not {name for needs, _ in names for name in needs if bound[name] > 1}


@pytest.mark.parametrize("kernel", ["07_your_own_method"], indirect=True)
def test_another_version_of_a_method_takes_back_its_model(kernel):
    kernel.run_cells("parameters")
    kernel.run_cells("write", "conformance")
    with pytest.raises(RunError, match="The whole model"):
        kernel.run_cells("metrics", "metrics")
    broken = kernel.code["write"].replace("return LayerResult(", "return (")
    kernel.run(broken)
    shown = kernel.run(kernel.code["conformance"])
    assert len(shown.data) == 1, "the same six times is said once"
    assert shown.data.squeeze() in html.unescape(shown.to_html()), "and whole"
