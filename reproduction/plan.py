"""Plans: run files, and the runs that they stand for.

A plan is a folder `runs/<plan>/<notebook>/`. A run file `NAME.yaml` in it maps parameters of the
notebook to values and is one run, called NAME; what it leaves out has the notebook's default, and
with an N:M pattern no sparsity (see `reproduction.parameters.effective_parameters`). With a
`grid` it stands for the product of the grid's axes, one run for each combination:

    name: "{method}-{target}"
    grid:
      method: [wanda, admm-grad]           # values of the parameter `method`
      target:                              # labels, and the parameters that go with each
        60: {sparsity: 0.6}
        2of4: {sparsity: 0.5, pattern: "2:4"}
      block: {early: 2, late: 27}          # labels, and values of the parameter `block`
    sequences: 32                          # the same in all runs

The labels of the axes make a run's name; a list's values are their own labels. A parameter is set
once, and no two runs of a plan share a name.

With `timed: true` the runner executes each of a file's runs alone among the runs of its plan, and
their records say so; another plan, or another program, is yours to keep away.
"""

import fnmatch
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from helpers.errors import RunError
from helpers.options import check_choice
from helpers.paths import (
    TABLES_NOTEBOOK,
    notebooks_dir,
    reference_dir,
    results_dir,
    runs_dir,
    visible_files,
)
from reproduction.parameters import (
    NOT_RECORDED,
    effective_parameters,
    read_parameters_cell,
)
from reproduction.records import check_type

RUN_NAME = re.compile(r"\w[\w.-]{0,99}")  # no longer than a record's name may be


@dataclass(frozen=True)
class Run:
    """One notebook with one set of parameters, and the paths of its files."""

    plan: str
    notebook: str
    name: str
    parameters: dict[str, Any]  # from the run file, without record_path
    defaults: dict[str, Any]  # of the notebook's parameters cell
    timed: bool = False  # alone among the runs of its plan, so that seconds compare

    @property
    def id(self) -> str:
        """`<notebook>--<name>`, the stem of every product's file name."""
        return f"{self.notebook}--{self.name}"

    @property
    def effective(self) -> dict[str, Any]:
        """The parameters of its record: all that the notebook will see, but for NOT_RECORDED."""
        return effective_parameters(self.defaults, self.parameters)

    @property
    def source_path(self) -> Path:
        """The notebook."""
        return notebooks_dir() / f"{self.notebook}.ipynb"

    @property
    def record_path(self) -> Path:
        """The record on this machine."""
        return results_dir(self.plan) / "records" / f"{self.id}.json"

    @property
    def reference_path(self) -> Path:
        """The committed record."""
        return reference_dir(self.plan) / "records" / f"{self.id}.json"

    @property
    def executed_path(self) -> Path:
        """The notebook with its outputs, after a success."""
        return results_dir(self.plan) / "runs" / f"{self.id}.ipynb"

    @property
    def failed_path(self) -> Path:
        """The notebook with its outputs, while it runs and after a failure."""
        return results_dir(self.plan) / "runs" / f"{self.id}.failed.ipynb"

    @property
    def log_path(self) -> Path:
        """What its process prints while it runs, and had printed when it failed."""
        return results_dir(self.plan) / "runs" / f"{self.id}.log"


def plan_names() -> list[str]:
    """The plans there are, which are the folders of `runs/`."""
    return sorted(folder.name for folder in runs_dir("").glob("[!.]*/"))


def read_plan(plan: str, only: str = "*") -> list[Run]:
    """The runs of a plan, ordered by notebook and name with the tables notebook last.

    `only` has patterns such as "04*" or "*wanda*", with spaces between them, each matched with
    notebook, name and both.

    Raises RunError for an unknown plan, for one without runs or a pattern without a match, and
    RunError or BadParameter for a run file that is wrong.
    """
    folder = runs_dir(check_choice("plan", plan, plan_names(), RunError))
    runs = {}
    for path in visible_files(folder, "**/*.*"):
        where = f"run file {plan}/{path.relative_to(folder).as_posix()}"
        for run in read_run_file(plan, path, where):
            if run.id in runs:
                raise RunError(
                    f"{where}: run {run.name} is there already, in this file or another"
                )
            runs[run.id] = run
    chosen = {}
    for pattern in only.split() or [only]:
        found = {
            run.id: run
            for run in runs.values()
            if fnmatch.filter(
                (run.notebook, run.name, run.id, f"{run.notebook}/{run.name}"), pattern
            )
        }
        if not found:
            # a part of a name is what most people write first
            part = f"*{pattern.strip('*')}*"
            hint = ""
            if any(fnmatch.fnmatch(run.id, part) for run in runs.values()):
                hint = f"; try ONLY='{part}'"
            raise RunError(
                f"plan {plan} has no run {pattern}: make plan PLAN={plan} lists them{hint}"
            )
        chosen |= found
    return sorted(
        chosen.values(), key=lambda run: (run.notebook == TABLES_NOTEBOOK, run.id)
    )


def read_run_file(plan: str, path: Path, where: str) -> Iterator[Run]:
    """The runs that a run file stands for, checked against its notebook.

    Raises RunError or BadParameter, whose text begins with `where`.
    """
    parts = path.relative_to(runs_dir(plan)).parts
    if len(parts) != 2 or path.suffix != ".yaml":
        raise RunError(f"{where} is out of place: the path is PLAN/NOTEBOOK/NAME.yaml")
    notebooks = [entry.stem for entry in notebooks_dir().glob("*.ipynb")]
    notebook = check_choice(f"{where}: notebook", parts[0], notebooks, RunError)
    defaults, types = read_parameters_cell(notebooks_dir() / f"{notebook}.ipynb")
    try:
        values = dict(yaml.load(path.read_bytes(), UniqueKeyLoader) or {})
    except (ValueError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{where} is not 'parameter: value' a line: {reason}") from error
    timed = values.pop("timed", False)
    named = expand_grid(values, where) if "grid" in values else [(path.stem, values)]
    for name, parameters in named:
        if not RUN_NAME.fullmatch(name):  # it becomes part of file names
            raise RunError(
                f"{where}: {name!r} is no name: use up to 100 letters, digits, . _ -"
            )
        for key, value in parameters.items():
            check_choice(
                f"{where}, run {name}: parameter", key, types.keys() - NOT_RECORDED
            )
            check_type(f"{where}, run {name}: {key}", value, types[key])
        run = Run(plan, notebook, name, parameters, defaults, timed)
        # committed records are read of any plan, those of runs here only of the run's own
        if run.effective.get("source") == "results" and run.effective["plan"] != plan:
            raise RunError(
                f"{where}: plan = {run.effective['plan']!r}, but the file is in {plan}"
            )
        yield run


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML that refuses a key written twice, of which others keep the last value."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """Compose a mapping, and raise YAMLError if a key is there twice."""
        node = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"{key!r} is written twice")
        return node


def expand_grid(
    values: dict[str, Any], where: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and parameters of each run of a grid. Raises RunError."""
    grid = values.pop("grid")
    template = values.pop("name", "")
    try:
        for labels in itertools.product(*grid.values()):
            point = dict(zip(grid, labels, strict=True))
            parameters = dict(values)
            for axis, label in point.items():
                value = grid[axis][label] if isinstance(grid[axis], dict) else label
                added = value if isinstance(value, dict) else {axis: value}
                if twice := parameters.keys() & added.keys():
                    raise RunError(
                        f"{where}: {min(twice)} is set twice, in the grid or outside it"
                    )
                parameters |= added
            yield template.format_map(point), parameters
    except (AttributeError, TypeError, LookupError, ValueError) as error:
        raise RunError(
            f"{where}: its grid cannot be read ({error!r}): write a list or a mapping of values "
            "for each axis, and name the axes in name"
        ) from error
