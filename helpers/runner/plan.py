"""Plans: run files, and the runs that they stand for.

A plan is a folder `runs/<plan>/<notebook>/`. A run file `NAME.yaml` in it maps parameters of the
notebook to values and is one run, called NAME; what it leaves out has the notebook's default. With
a `grid` it stands for the product of the grid's axes, one run for each combination:

    name: "{method}-{target}"
    grid:
      method: [wanda, admm-grad]           # values of the parameter `method`
      target:                              # labels, and the parameters that go with each
        60: {sparsity: 0.6}
        2of4: {sparsity: 0.5, pattern: "2:4"}
      block: {early: 2, late: 27}          # labels, and values of the parameter `block`
    sequences: 32                          # the same in all runs

With `timed: true` the runner executes each of a file's runs alone among the runs of its plan, and
their records say so; another plan, or another program, is yours to keep away. The labels of its
axes make a run's name, so every axis appears in it; a list's values are their own labels. A
parameter is set once, and no two runs of a plan share a name.
"""

from __future__ import annotations

import difflib
import fnmatch
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from helpers.errors import RunError, check_choice
from helpers.paths import TABLES_NOTEBOOK, notebooks_dir, reference_dir, results_dir, runs_dir
from helpers.runner.parameters import check_values, read_parameters_cell

# where the record goes, and how a reader had parameters chosen: the record holds what was chosen
NOT_RECORDED = ("record_path", "preset")
SCRATCH = ".runner"  # a folder of a plan's results, for what a runner keeps while it runs the plan
NAMES_SHOWN = 20
RUN_NAME = re.compile(r"\w[\w.-]{0,99}")  # no longer than a record's name may be
AXIS = re.compile(r"{([^{}]*)}")  # in the name of a grid's runs


@dataclass(frozen=True)
class Run:
    """One notebook with one set of parameters, and the paths of its files."""

    plan: str
    notebook: str
    name: str
    parameters: dict[str, Any]  # from the run file, without record_path
    defaults: dict[str, Any]  # of the notebook's parameters cell
    timed: bool = False  # alone among the runs of its plan, so that its seconds can be compared

    @property
    def id(self) -> str:
        """`<notebook>--<name>`, the stem of every product's file name."""
        return f"{self.notebook}--{self.name}"

    @property
    def effective(self) -> dict[str, Any]:
        """The parameters of its record: all that the notebook will see, but for NOT_RECORDED."""
        merged = self.defaults | self.parameters
        return {key: value for key, value in merged.items() if key not in NOT_RECORDED}

    def _result(self, folder: str, ending: str) -> Path:
        return results_dir(self.plan) / folder / f"{self.id}{ending}"

    source_path = property(lambda run: notebooks_dir() / f"{run.notebook}.ipynb")
    record_path = property(lambda run: run._result("records", ".json"))
    reference_path = property(
        lambda run: reference_dir(run.plan) / "records" / f"{run.id}.json"  # the committed record
    )
    # the notebook after a success; while it runs and after a failure
    executed_path = property(lambda run: run._result("runs", ".ipynb"))
    failed_path = property(lambda run: run._result("runs", ".failed.ipynb"))
    # what its process prints; it stays only if the process died without an error
    log_path = property(lambda run: run._result("runs", ".log"))
    # what its process is to do; there while the run is under way
    job_path = property(lambda run: run._result(SCRATCH, ".job.json"))


def plan_names() -> list[str]:
    """The plans there are, which are the folders of `runs/`."""
    return sorted(entry.name for entry in runs_dir("").glob("*") if entry.is_dir())


def read_plan(plan: str, only: str | None = None) -> list[Run]:
    """The runs of a plan, ordered by notebook and name with the tables notebook last.

    `only` is a pattern such as "04*" or "*wanda*", matched with notebook, name and both.

    Raises RunError for an unknown or empty plan, for a pattern without a match and for a run file
    that is wrong.
    """
    check_choice("plan", plan, plan_names(), RunError)
    folder = runs_dir(plan)
    found: dict[str, tuple[Run, str]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or path.name.startswith("."):
            continue
        where = f"run file {plan}/{path.relative_to(folder).as_posix()}"
        for run in _read_run_file(plan, path, where):
            if run.id in found:
                raise RunError(f"{where}: run {run.name} is in {found[run.id][1]} already")
            found[run.id] = run, path.name
    if not found:
        raise RunError(f"plan {plan} has no run files: put NOTEBOOK/NAME.yaml into {folder}")
    runs = [run for run, _ in found.values()]
    runs.sort(key=lambda run: (run.notebook == TABLES_NOTEBOOK, run.notebook, run.name))
    if only is None:
        return runs
    names = {run.id: (f"{run.notebook}/{run.name}", run.id, run.notebook, run.name) for run in runs}
    if chosen := [run for run in runs if fnmatch.filter(names[run.id], only)]:
        return chosen
    near = difflib.get_close_matches(only.replace("*", ""), itertools.chain(*names.values()), n=1)
    shown = [first for first, *_ in names.values()]
    shown[NAMES_SHOWN:] = ["…"] if len(shown) > NAMES_SHOWN else []
    raise RunError(
        f"no run of plan {plan} matches {only!r}: choose among {', '.join(shown)} (make plan "
        f"PLAN={plan}), with * for any letters{f'; did you mean {near[0]!r}?' if near else ''}"
    )


def _read_run_file(plan: str, path: Path, where: str) -> Iterator[Run]:
    """The runs that a run file stands for, checked against its notebook; RunError, with `where`."""
    parts = path.relative_to(runs_dir(plan)).parts
    if len(parts) != 2 or path.suffix != ".yaml":
        raise RunError(f"{where} is out of place: the path is PLAN/NOTEBOOK/NAME.yaml")
    notebooks = [entry.stem for entry in notebooks_dir().glob("*.ipynb")]
    notebook = check_choice(f"{where}: notebook", parts[0], notebooks, RunError)
    defaults, types = read_parameters_cell(notebooks_dir() / f"{notebook}.ipynb")
    values = _read_yaml(path, where)
    if not isinstance(timed := values.pop("timed", False), bool):
        raise RunError(f"{where}: timed = {timed!r} is not possible: write true or false")
    is_grid = "grid" in values
    for name, parameters in _expand(values, where) if is_grid else [(path.stem, values)]:
        if not RUN_NAME.fullmatch(name):  # it becomes part of file names
            raise RunError(f"{where}: {name!r} is no name: use up to 100 letters, digits, . _ -")
        place = f"{where}, run {name}" if is_grid else where
        check_values(parameters, types, place)
        run = Run(plan, notebook, name, parameters, defaults, timed)
        if run.effective.get("plan", plan) != plan:
            raise RunError(f"{place}: plan = {run.effective['plan']!r}, but the file is in {plan}")
        yield run


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, where PyYAML would silently keep the last.

    It refuses aliases too: with them a value can hold itself, or grow beyond any memory.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(
                problem="aliases (*name) are not allowed: write the value out",
                problem_mark=self.peek_event().start_mark,
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key!r} is given twice", problem_mark=node.start_mark
                )
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path, where: str) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except RecursionError as error:
        raise RunError(f"{where} cannot be read: its values are nested too deeply") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise RunError(f"{where} cannot be read{line}: {reason}") from error
    values = {} if values is None else values
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise RunError(f"{where} is not a mapping: write one 'parameter: value' a line")
    return values


def _expand(values: dict[str, Any], where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and parameters of each run of a grid."""
    grid, template = values.pop("grid"), str(values.pop("name", ""))
    if not isinstance(grid, dict) or not grid:
        raise RunError(f"{where}: grid is not a mapping: write 'parameter: [values]' under it")
    axes = {str(axis): _points(str(axis), choices, where) for axis, choices in grid.items()}
    if wrong := sorted(set(AXIS.findall(template)) ^ set(axes)):
        example = "-".join(f"{{{axis}}}" for axis in axes)
        raise RunError(
            f"{where}: {wrong[0]!r} must appear both in name and in grid: "
            f'write for example name: "{example}"'
        )
    for points in itertools.product(*axes.values()):
        labels = {axis: label for axis, (label, _) in zip(axes, points, strict=True)}
        name = AXIS.sub(lambda match, labels=labels: labels[match[1]], template)
        parameters = dict(values)
        for _, point in points:
            for key in parameters.keys() & point.keys():
                raise RunError(f"{where}: {key} is set twice: in the grid or beside it, not both")
            parameters |= point
        yield name, parameters


def _points(axis: str, choices: Any, where: str) -> list[tuple[str, dict[str, Any]]]:
    """The labels of an axis, and the parameters that each stands for."""
    if not isinstance(choices, (list, dict)) or not choices:
        raise RunError(f"{where}: {axis} in the grid is not a list or a mapping of values")
    items = choices.items() if isinstance(choices, dict) else [(value, value) for value in choices]
    for label, _ in items:
        # these have no text of their own; what else cannot be part of a name is seen there
        if label is None or isinstance(label, bool):
            raise RunError(
                f"{where}: {axis} {label!r} cannot be part of a name: write 'label: value' for it"
            )
    return [
        (str(label), value if isinstance(value, dict) else {axis: value}) for label, value in items
    ]


def count_runs(number: int) -> str:
    """A number of runs."""
    return f"{number} run{'' if number == 1 else 's'}"


def assets_needed(runs: Iterable[Run]) -> list[str]:
    """The pinned downloads that runs read (names of `assets.ASSETS`), in a fixed order."""
    wanted = {
        "model": lambda asked: asked.get("model") in ("embedded", "tiny"),  # "tiny": its tokenizer
        "c4": lambda asked: asked.get("calibration") == "embedded",
        "wiki": lambda asked: asked.get("evaluation") == "embedded",
        "tasks": lambda asked: "tasks" in asked and asked.get("source") == "embedded",
    }
    return [name for name, reads in wanted.items() if any(reads(run.effective) for run in runs)]
