"""A notebook while it runs: its checked parameters, its clock and the record it writes.

A notebook names each parameter once, in its parameters cell:

    run = open_run("04_prune_model", globals())  # after the parameters cell
    ...
    run.write({"perplexity": (value, "1")}, model=model_identity(network), name="admm-grad-60")
"""

import ast
import copy
import time
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import pandas as pd

from helpers.device import describe_device, peak_memory_bytes, pick_device
from helpers.errors import BadParameter
from helpers.machine import check_memory, choose, prepare_kernel
from helpers.options import check_choice
from helpers.paths import notebooks_dir
from helpers.report import check_type, make_record, write_record
from helpers.runner.parameters import NOT_RECORDED, effective, read_parameters_cell


class NotebookRun:
    """An opened notebook; see `open_run`.

    parameters: name → value, as the record will hold them (without `record_path` and `preset`)
    device: where it computes; the CPU if the notebook has no `device` parameter
    needs: estimated and free memory, to be shown; None if it loads no model
    name: the run's name if the runner has set `record_path`, else ""
    """

    def __init__(
        self,
        notebook: str,
        namespace: Mapping[str, Any],
        names: Iterable[str],
        needs: Any,
    ) -> None:
        self._namespace, self._started = namespace, time.perf_counter()
        self._record_path = namespace["record_path"]
        self.notebook, self.needs = notebook, needs
        self.parameters = {
            n: copy.deepcopy(namespace[n]) for n in names if n not in NOT_RECORDED
        }
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
            if self._namespace.get(parameter) != value:
                raise BadParameter(
                    f"{parameter} is {self._namespace.get(parameter)!r} and was {value!r} when the "
                    "run was opened: run the notebook again from its parameters cell"
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
        return pd.DataFrame(record["metrics"]).T.rename_axis(path.name)


def open_run(notebook: str, namespace: MutableMapping[str, Any]) -> NotebookRun:
    """Check a notebook's parameters and start its clock; to be called before a model is loaded.

    notebook: the name of a file in notebooks/; the names, types and defaults of the parameters are
    those of its saved parameters cell. namespace: `globals()`, which holds their values. The
    parameters that `preset` chooses are written back into it, and where an N:M pattern is given, by
    papermill or by hand, the default sparsity is None there.
    Raises BadParameter for a parameter that is missing, of a wrong type or at odds with the preset,
    and for a name given to papermill that is not a parameter,
    OutOfMemory if the run does not fit this machine, and RunError on Colab if the kernel has to be
    restarted first.
    """
    prepare_kernel()
    defaults, types = read_parameters_cell(notebooks_dir() / f"{notebook}.ipynb")
    for name in (injected := _injected(namespace)):
        check_choice("parameter", name, types)
    for name, allowed_types in types.items():
        if name not in namespace:
            raise BadParameter(
                f"parameter {name} is not set: run the parameters cell first"
            )
        check_type(name, namespace[name], allowed_types)
    # by papermill, or by hand in the parameters cell
    written = {
        n: namespace[n] for n in types if n in injected or namespace[n] != defaults[n]
    }
    namespace.update(effective(defaults, written))
    namespace.update(choose(namespace.get("preset", ""), notebook, namespace, defaults))
    needs = None
    if "model" in defaults:
        words = check_memory(notebook, {name: namespace[name] for name in defaults})
        needs = pd.Series(words, name="this machine").to_frame()
    return NotebookRun(notebook, namespace, defaults, needs)


def _injected(namespace: Mapping[str, Any]) -> list[str]:
    """The names that papermill has set, with `-p` or from Python.

    papermill itself only warns of a name that the parameters cell does not have. It puts what it
    sets into a cell that begins with a comment of its own, and IPython keeps the text of each cell
    that has run in `In`.
    """
    cells = [
        text for text in namespace.get("In", []) if text.startswith("# Parameters\n")
    ]
    nodes = ast.walk(
        ast.parse(cells[-1] if cells else "")
    )  # the last, after a second try
    names = [
        n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    ]
    return [
        name for name in names if not name.startswith("PAPERMILL_")
    ]  # of --inject-paths
