"""A notebook while it runs: its checked parameters, its clock and the record it writes.

A notebook names each parameter once, in its parameters cell:

    run = open_run("04_prune_model", globals())  # after the parameters cell
    ...
    run.write({"perplexity": (value, "1")}, model=model_identity(network), name="admm-grad-60")
"""

import ast
import copy
import time
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import pandas as pd

from helpers.device import describe_device, peak_memory_bytes, pick_device
from helpers.errors import BadParameter
from helpers.machine import check_memory, choose, prepare_kernel
from helpers.options import check_choice
from helpers.paths import notebooks_dir
from helpers.report import check_type, make_record, write_record
from helpers.runner.parameters import (
    Parameters,
    effective_parameters,
    read_parameters_cell,
)


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
        parameters: Parameters,
        needs: pd.DataFrame | None,
    ) -> None:
        self._started = time.perf_counter()
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

    def record(
        self, metrics: Mapping[str, Any], *, name: str = "default", **contents: Any
    ) -> dict[str, Any]:
        """The run's record as it is now, not written; `write` takes the same arguments.

        metrics: name → (value, unit) or (value, unit, tolerance), with "1" as the unit of a pure
            number
        name: the record's name when the notebook is run by hand
        contents: `model`, `data`, `seeds`, `layers` and `series` of `make_record`
        Raises FileError as `make_record` does, and BadParameter if a parameter has changed since
        the run was opened: the results could belong to either value.
        """
        for parameter, value in self.parameters.items():
            now = self._namespace.get(parameter)
            if now != value:
                raise BadParameter(
                    f"{parameter} is {now!r} and was {value!r} when the run was opened: run the "
                    "notebook again from its parameters cell"
                )
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
        return table.rename_axis(path.name)


def open_run(notebook: str, namespace: MutableMapping[str, Any]) -> NotebookRun:
    """Check a notebook's parameters and start its clock; call it before a model is loaded.

    notebook: the name of a file in notebooks/; the names, types and defaults of the parameters are
    those of its saved parameters cell. namespace: `globals()`, which holds their values. The
    parameters that `preset` chooses are written back into it, and where an N:M pattern is given, by
    papermill or by hand, the default sparsity is None there.

    Raises BadParameter for a parameter that is missing, of a wrong type or at odds with the preset,
    and for a name given to papermill that is not a parameter; OutOfMemory if the run does not fit
    this machine; and RunError on Colab if the kernel has to be restarted first.
    """
    prepare_kernel()
    defaults, types = read_parameters_cell(notebooks_dir() / f"{notebook}.ipynb")
    injected = injected_names(namespace)
    for name in injected:
        check_choice("parameter", name, types)
    written = {}  # by papermill, or by hand in the parameters cell
    for name, default in defaults.items():
        if name not in namespace:
            raise BadParameter(
                f"parameter {name} is not set: run the parameters cell first"
            )
        check_type(name, namespace[name], types[name])
        if name in injected or namespace[name] != default:
            written[name] = namespace[name]
    parameters = effective_parameters(defaults, written)
    preset = namespace.get("preset", "")
    parameters |= choose(preset, notebook, parameters, defaults)
    namespace.update(parameters)
    needs = None
    if "model" in parameters:
        needs = pd.DataFrame({"this machine": check_memory(notebook, parameters)})
    return NotebookRun(notebook, namespace, parameters, needs)


def injected_names(namespace: Mapping[str, Any]) -> set[str]:
    """The names that papermill has set, with `-p` or from Python.

    papermill itself only warns of a name that the parameters cell does not have. It puts what it
    sets into a cell that begins with a comment of its own, and IPython keeps the text of each cell
    that has run in `In`.
    """
    injected = [
        text for text in namespace.get("In", []) if text.startswith("# Parameters\n")
    ]
    if not injected:
        return set()
    return {
        node.id
        for node in ast.walk(ast.parse(injected[-1]))  # the last, after a second try
        if isinstance(node, ast.Name)
        and isinstance(node.ctx, ast.Store)
        and not node.id.startswith("PAPERMILL_")  # of --inject-paths
    }
