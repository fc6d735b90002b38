"""A notebook while it runs: its checked parameters, its clock and the record it writes.

A notebook names each parameter once, in its parameters cell:

    run = open_run("04_prune_model", globals())  # after the parameters cell
    ...
    run.write({"perplexity": (value, "1")}, model=model_identity(network), name="admm-grad-60")

In between, a cell that needs what is not there, or was made with other parameters, is refused: see
`reproduction.cell_order`.
"""

import contextlib
import copy
import difflib
import re
import time
from collections.abc import Collection, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import pandas as pd
from IPython import get_ipython
from pandas.io.formats.style import Styler

from helpers.data.corpora import CALIBRATION_SOURCES, EVALUATION_SOURCES, check_text
from helpers.device import describe_device, peak_memory_bytes, pick_device
from helpers.errors import BadParameter, UnsupportedModel
from helpers.memory import model_size
from helpers.options import check_choice
from helpers.paper.masks import target_sparsity
from helpers.paper.methods import check_method_options
from helpers.paths import notebooks_dir, reference_dir
from helpers.pruning import method_options
from reproduction.cell_order import CellOrder
from reproduction.machine import check_memory, choose, prepare_kernel
from reproduction.parameters import (
    code_cells,
    effective_parameters,
    read_parameters_cell,
)
from reproduction.plan import plan_names
from reproduction.records import check_type, make_record, write_record


class NotebookRun:
    """A notebook's run, from its parameters to its record; `open_run` makes it.

    parameters: name → value, as the record will hold them (without `record_path` and `preset`)
    device: where it computes; the CPU if the notebook has no `device` parameter
    needs: estimated and free memory, as a table to show; None if it loads no model
    name: the run's name if the runner has set `record_path`, else ""
    """

    def __init__(
        self,
        notebook: str,
        namespace: Mapping[str, Any],
        parameters: dict[str, Any],
        needs: Styler | None,
    ) -> None:
        self._started = time.perf_counter()
        self._order: CellOrder | None = None
        self._namespace = namespace
        self._record_path = namespace["record_path"]
        self.notebook = notebook
        self.needs = needs
        self.parameters = copy.deepcopy(parameters)
        self.device = pick_device(self.parameters.get("device", "cpu"))
        # the runner names a record <notebook>--<name>.json
        self.name = Path(self._record_path).stem.partition("--")[2]

    @property
    def peak_memory(self) -> int:
        """Peak memory so far, in bytes: of the GPU, or of this process on a CPU."""
        return peak_memory_bytes(self.device)

    def watch_cells(self, path: Path) -> None:
        """Refuse cells whose results could not hold, where the namespace is that of an IPython."""
        shell = get_ipython()
        if shell is not None and shell.user_ns is self._namespace:
            self._order = CellOrder(
                path, shell.user_ns, self.parameters, self.check_parameters
            )
            self._order.watch(shell)

    def check_parameters(self) -> None:
        """Raise BadParameter if a parameter has changed since the run was opened."""
        for parameter, value in self.parameters.items():
            now = self._namespace.get(parameter)
            if now != value:
                raise BadParameter(
                    f"{parameter} is {now!r} and was {value!r} when the cell of imports was run: "
                    "run the notebook again from its parameters cell"
                )

    def forget(self, *results: str) -> None:
        """Delete results of the notebook's cells, and all that was made from them.

        For what no name tells: a cell that changes a method, which another prunes with.
        """
        if self._order:
            self._order.forget(results)

    def record(
        self, metrics: Mapping[str, Any], *, name: str = "default", **contents: Any
    ) -> dict[str, Any]:
        """The run's record as it is now, not written; `write` takes the same arguments.

        metrics: name → (value, unit) or (value, unit, tolerance), with "1" as the unit of a pure
            number
        name: the record's name when the notebook is run by hand
        contents: `model`, `data`, `seeds`, `layers` and `series` of `make_record`
        Raises BadParameter if a parameter has changed, and FileError as `make_record` does.
        """
        self.check_parameters()
        keys = ("value", "unit", "tolerance")
        named = {
            key: dict(zip(keys, metric, strict=False))
            for key, metric in metrics.items()
        }
        return make_record(
            notebook=self.notebook,
            name=self.name or name,
            parameters=self.parameters,
            metrics=named,
            seconds=time.perf_counter() - self._started,
            device=describe_device(self.device),
            peak_memory_bytes=self.peak_memory,
            **{"model": None, "data": None, "seeds": {}, **contents},
        )

    def write(self, metrics: Mapping[str, Any], **contents: Any) -> pd.DataFrame:
        """Write the run's record (see `record`) and return its metrics as a table to show."""
        record = self.record(metrics, **contents)
        path = write_record(self._record_path, record)
        table = pd.DataFrame(record["metrics"]).T.replace({"unit": {"1": ""}})
        table = table.loc[:, table.ne("").any()]  # no units where all are pure numbers
        return table.rename_axis(path.name)


def open_run(notebook: str, namespace: MutableMapping[str, Any]) -> NotebookRun:
    """Check a notebook's parameters and start its clock; call it before a model is loaded.

    notebook: the name of a file in notebooks/; the names, types and defaults of the parameters are
    those of its saved parameters cell. namespace: `globals()`, which holds their values. The
    parameters that `preset` chooses are written back into it, and where an N:M pattern is given, by
    papermill or by hand, the default sparsity is None there. What an earlier run in this kernel has
    left there is deleted. In IPython (Jupyter, papermill, Colab) the cells that follow are watched:
    see `reproduction.cell_order`.

    Raises BadParameter for a parameter that is missing, misspelt, of a wrong type or at odds with
    the preset, for a sparsity out of range, for a method, an option, a text or a model that does
    not exist, and for a name given to papermill that is not a parameter; OutOfMemory if the run
    does not fit this machine; and RunError on Colab if the kernel has to be restarted first.
    """
    prepare_kernel()
    path = notebooks_dir() / f"{notebook}.ipynb"
    defaults, types = read_parameters_cell(path)
    injected = injected_names(namespace)
    for (
        name
    ) in injected:  # papermill only warns of one that the parameters cell has not
        check_choice("parameter", name, types)
    check_no_near_miss(namespace, types, path)
    written = {}  # by papermill, or by hand in the parameters cell
    for name, default in defaults.items():
        if name not in namespace:
            raise BadParameter(
                f"parameter {name} is not set: run the parameters cell first, or is its name "
                "misspelt there?"
            )
        check_type(name, namespace[name], types[name])
        if name in injected or namespace[name] != default:
            written[name] = namespace[name]
    parameters = effective_parameters(defaults, written)
    parameters |= choose(namespace.get("preset", ""), notebook, parameters, defaults)
    namespace.update(parameters)
    if "method" in parameters:  # now rather than after loading
        target_sparsity(
            parameters["sparsity"], parameters.get("pattern", "unstructured")
        )
    check_names(parameters, path)
    needs = None
    if "model" in parameters:
        shown = pd.DataFrame({"this machine": check_memory(notebook, parameters)})
        # whole sentences: a plain frame ends them after 50 characters
        needs = shown.style.format(escape="html").set_properties(
            **{"text-align": "left"}
        )
    run = NotebookRun(notebook, namespace, parameters, needs)
    run.watch_cells(path)
    return run


def check_names(parameters: Mapping[str, Any], path: Path) -> None:
    """Raise BadParameter for a method, an option of it, a text, a block or a plan that is none.

    A block's number is compared where the size of the model is known.
    """
    method = parameters.get("method")
    # 04 and 05, which have an effort, measure the dense model too; 07 registers a method itself
    known = method == "dense" and "effort" in parameters
    known |= any("@register(" in source for source, _ in code_cells(path))
    if method is not None and not known:
        options = method_options(
            parameters.get("options", {}),
            effort=parameters.get("effort", ""),
            streamed=parameters.get("streamed", False),
        )
        check_method_options(method, options)
    for name, sources in (
        ("calibration", CALIBRATION_SOURCES),
        ("evaluation", EVALUATION_SOURCES),
    ):
        if name in parameters:
            check_text(parameters[name], sources)
    if "block" in parameters:
        check_block(parameters["block"], parameters["model"])
    # records of a plan that has no run files any longer may still be there
    if "plan" in parameters and not reference_dir(parameters["plan"]).is_dir():
        check_choice("plan", parameters["plan"], plan_names())


def check_block(block: int, model: str) -> None:
    """Raise BadParameter for the number of a block that a model does not have."""
    with contextlib.suppress(UnsupportedModel):  # not known before it is loaded
        blocks = model_size(model).blocks
        if not 0 <= block < blocks:
            raise BadParameter(
                f"block {block} is not there: {model} has {blocks} blocks, 0 to {blocks - 1}"
            )


def injected_names(namespace: Mapping[str, Any]) -> list[str]:
    """The names that papermill has set.

    They are in a cell that begins with a comment of its own; after a second try in the same kernel,
    in the last of those.
    """
    names: list[str] = []
    for text in namespace.get("In", []):
        if text.startswith("# Parameters\n"):
            # PAPERMILL_… is of --inject-paths
            names = re.findall(r"(?m)^(?!PAPERMILL_)(\w+) = ", text)
    return names


def check_no_near_miss(
    namespace: Mapping[str, Any], parameters: Collection[str], path: Path
) -> None:
    """Raise BadParameter for a variable that the notebook does not have, named like a parameter.

    Where a name is misspelt in a live kernel, the parameter that was meant has its old value there.
    """
    code = " ".join(re.sub("#.*", "", source) for source, _ in code_cells(path))
    for name in namespace.keys() - {*re.findall(r"\w+", code)}:
        for near in difflib.get_close_matches(name, parameters, n=1, cutoff=0.8):
            raise BadParameter(
                f"{name} is not a parameter: did you mean {near!r}? Correct it, and run "
                f"`del {name}` or restart the kernel (a variable of your own needs a name less "
                "like a parameter's)"
            )
