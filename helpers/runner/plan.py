"""Plans: which notebooks to run with which parameters, checked before anything starts.

A plan is a folder `runs/<plan>/<notebook>/<name>.yaml`; each file is a flat mapping of parameter
to value. papermill would take an unknown name with a warning and a wrong type in silence, and then
report the default's number under another name, so everything is compared here with the literals of
the notebook's one `parameters` cell.

A run is done when its record carries the run's fingerprint: a hash of its parameters, of the
notebook's code and of the helpers that the notebook uses, directly or through others. Comments,
docstrings, layout, explorers and the set-up of Colab do not count.
"""

from __future__ import annotations

import ast
import difflib
import fnmatch
import functools
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import yaml

from helpers.errors import BadParameter, RecordError, RunError, allowed, check_choice
from helpers.paths import notebooks_dir, own_method_file, results_dir, root, runs_dir
from helpers.records import EXPONENT_WITHOUT_POINT, check_type, read_record

# reads the records of all other runs, so it goes last
TABLES_NOTEBOOK = "06_tables_and_plots"
# folders of helpers that decide numbers, as the modules beside them do; the others are wings
CORE_FOLDERS = ("fast", "beyond")
# tags of cells that decide no number: they prepare Colab, or let a reader explore
SHOW_TAGS = {"colab-setup", "explorer"}
# where the record goes, and how a reader had parameters chosen: the record holds what was chosen
NOT_RECORDED = ("record_path", "preset")
TYPE_NAMES = {"int": int, "float": float, "str": str, "bool": bool, "dict": dict, "list": list}


@dataclass(frozen=True)
class Run:
    """One run of a plan: a notebook with its parameters, and where its products lie."""

    plan: str
    notebook: str
    name: str
    parameters: dict[str, Any]  # from the run file, without record_path
    defaults: dict[str, Any]  # of the notebook's parameters cell

    @property
    def id(self) -> str:
        """`<notebook>--<name>`, the stem of every product's file name."""
        return f"{self.notebook}--{self.name}"

    @property
    def record_path(self) -> Path:
        """Where the run's record lies."""
        return results_dir(self.plan) / "records" / f"{self.id}.json"

    @property
    def executed_path(self) -> Path:
        """Where the executed notebook lies after a success."""
        return results_dir(self.plan) / "runs" / f"{self.id}.ipynb"

    @property
    def failed_path(self) -> Path:
        """Where the notebook lies while it runs and after a failure."""
        return self.executed_path.with_name(f"{self.id}.failed.ipynb")

    @property
    def job_path(self) -> Path:
        """What the runner tells the run's process; there as long as the run is under way."""
        return scratch_dir(self.plan) / f"{self.id}.job.json"

    @property
    def source_path(self) -> Path:
        """The notebook to execute."""
        return notebooks_dir() / f"{self.notebook}.ipynb"

    @property
    def effective(self) -> dict[str, Any]:
        """The parameters of its record: all that the notebook will see, but for NOT_RECORDED."""
        merged = {**self.defaults, **self.parameters}
        return {key: value for key, value in merged.items() if key not in NOT_RECORDED}


def scratch_dir(plan: str) -> Path:
    """Where a runner keeps what it tells the processes of its runs."""
    return results_dir(plan) / ".runner"


def record_id(record: Mapping[str, Any]) -> str:
    """The id of the run that a record is of."""
    return f"{record['notebook']}--{record['name']}"


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, where PyYAML would keep the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is given twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def plan_names() -> list[str]:
    """The plans there are, which are the folders of `runs/`."""
    folder = runs_dir("")
    return sorted(entry.name for entry in folder.glob("*") if entry.is_dir())


def read_plan(plan: str, only: str | None = None) -> list[Run]:
    """The runs of a plan, ordered by notebook and name with the tables notebook last.

    `only` is a pattern such as "04*" or "*wanda*", matched with notebook, name and both.

    Raises RunError for an unknown or empty plan, for a pattern without a match and for a run file
    that is wrong; the first one is shown and the others counted.
    """
    check_choice("plan", plan, plan_names(), RunError)
    runs, problems = [], []
    for path in _run_files(plan):
        try:
            runs.append(read_run(plan, path))
        except RunError as error:
            problems.append(str(error))
    if problems:
        more = f" (and {len(problems) - 1} more like it)" if len(problems) > 1 else ""
        raise RunError(problems[0] + more)
    if not runs:
        raise RunError(
            f"plan {plan} has no run files: put NOTEBOOK/NAME.yaml into {runs_dir(plan)}"
        )
    runs.sort(key=lambda run: (run.notebook == TABLES_NOTEBOOK, run.notebook, run.name))
    return [run for run in runs if _matches(run, only)] or _no_match(plan, only, runs)


def _run_files(plan: str) -> Iterator[Path]:
    """The run files of a plan; hidden files are left alone."""
    for path in sorted(runs_dir(plan).rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            yield path


def _matches(run: Run, only: str | None) -> bool:
    """Whether a run is among those asked for."""
    names = (run.notebook, run.name, run.id, f"{run.notebook}/{run.name}")
    return only is None or any(fnmatch.fnmatch(name, only) for name in names)


def _no_match(plan: str, only: str | None, runs: Iterable[Run]) -> list[Run]:
    """Raise RunError for a pattern that selects nothing."""
    names = [f"{run.notebook}/{run.name}" for run in runs]
    words = sorted({part for n in names for part in re.split("[/-]", n) + n.split("/")})
    # a piece that stands in some name is not what was mistyped
    pieces = re.split(r"[*?\[\]/]", only or "")
    wrong = [piece for piece in pieces if not any(piece in name for name in names)]
    near = [word for piece in wrong for word in difflib.get_close_matches(piece, words, n=1)]
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise RunError(
        f"no run of plan {plan} matches {only!r}: choose among {', '.join(names)}, with * for "
        f"any letters{hint}"
    )


def read_run(plan: str, path: Path) -> Run:
    """The run that a run file describes, checked against its notebook.

    Raises RunError that names the file.
    """
    relative = path.relative_to(runs_dir(plan))
    where = f"run file {plan}/{relative.as_posix()}"
    if len(relative.parts) != 2 or path.suffix != ".yaml":
        raise RunError(f"{where} is out of place: the path is PLAN/NOTEBOOK/NAME.yaml")
    notebooks = sorted(entry.stem for entry in notebooks_dir().glob("*.ipynb"))
    notebook = check_choice(f"{where}: notebook", relative.parts[0], notebooks, RunError)
    defaults, types = read_parameters_cell(notebooks_dir() / f"{notebook}.ipynb")
    parameters = _read_yaml(path, where)
    try:
        _check_against(parameters, types, where)
    except BadParameter as error:
        raise RunError(str(error)) from error
    run = Run(plan, notebook, path.stem, parameters, defaults)
    if run.effective.get("plan", plan) != plan:
        raise RunError(f"{where}: plan = {run.effective['plan']!r}, but it lies in {plan}")
    return run


def _read_yaml(path: Path, where: str) -> dict[str, Any]:
    """The mapping in a run file; RunError if it is not one."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        raise RunError(f"{where} cannot be read{line}: {reason}") from error
    values = {} if values is None else values
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise RunError(f"{where} is not a mapping: write one 'parameter: value' a line")
    return values


def _check_against(parameters: dict[str, Any], types: dict[str, set[type]], where: str) -> None:
    """Raise RunError or BadParameter for names and types that the notebook does not have."""
    if "record_path" in parameters:
        raise RunError(f"{where}: record_path is set by the runner; take the line out")
    if "preset" in parameters:
        raise RunError(f"{where}: preset depends on the machine: name the parameters themselves")
    if "record_path" not in types:
        raise RunError(f"{where}: its notebook has no record_path parameter: add one, default ''")
    for key, value in parameters.items():
        if key not in types:
            near = difflib.get_close_matches(key, types, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose one of {allowed(types)}"
            raise RunError(f"{where}: parameter {key!r} is not in the parameters cell; {hint}")
        if types[key]:
            check_type(f"{where}: {key}", value, types[key])
        _check_nested(f"{where}: {key}", value, nested=False)


def _check_nested(where: str, value: Any, nested: bool = True) -> None:
    """Raise RunError for values inside a list or mapping that papermill or YAML would change."""
    if isinstance(value, dict):
        for key, item in value.items():
            _check_nested(f"{where}.{key}", item)
    elif isinstance(value, list):
        for item in value:
            _check_nested(where, item)
    elif isinstance(value, str):
        if nested and EXPONENT_WITHOUT_POINT.fullmatch(value):
            raise RunError(f"{where} = {value!r} is text: write it with a point, as in 1.0e-3")
    elif not isinstance(value, (bool, int, float, NoneType)):
        raise RunError(f"{where} is a {type(value).__name__}: put the text in quotes")


def read_notebook(path: Path) -> dict[str, Any]:
    """The JSON of a notebook; RunError if it cannot be read or asks for what papermill ignores."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = notebook["cells"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"notebook {path.name} cannot be read: restore it from git") from error
    if any("raises-exception" in _tags(cell) for cell in cells):
        raise RunError(
            f"notebook {path.name} has a raises-exception tag, which papermill does not honour: "
            "catch the error in the cell"
        )
    return notebook


def _tags(cell: dict[str, Any]) -> list[str]:
    """The tags of a cell."""
    return cell.get("metadata", {}).get("tags", [])


def _source(cell: dict[str, Any]) -> str:
    """The text of a cell, which a notebook may hold as a list of lines."""
    return "".join(cell["source"])


def read_parameters_cell(path: Path) -> tuple[dict[str, Any], dict[str, set[type]]]:
    """Defaults of a notebook's parameters, and the types that each accepts (empty: any).

    Raises RunError unless there is exactly one `parameters` cell of literals. A derived value there
    would keep the default's result, because papermill injects the parameters after that cell.
    """
    cells = [cell for cell in read_notebook(path)["cells"] if "parameters" in _tags(cell)]
    if len(cells) != 1:
        raise RunError(f"notebook {path.name} has {len(cells)} parameters cells: it needs one")
    defaults, types = {}, {}
    try:
        statements = ast.parse(_source(cells[0])).body
    except SyntaxError as error:
        raise RunError(f"notebook {path.name}: its parameters cell is not Python") from error
    for statement in statements:
        name, value, annotation = _assignment(statement, path.name)
        defaults[name] = value
        types[name] = _types(value, annotation)
    return defaults, types


def _assignment(statement: ast.stmt, where: str) -> tuple[str, Any, ast.expr | None]:
    """Name, literal value and annotation of one line of a parameters cell."""
    code = ast.unparse(statement)
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    if isinstance(statement, ast.AnnAssign) and statement.value is not None:
        targets = [statement.target]
    if len(targets) != 1 or not isinstance(targets[0], ast.Name):
        raise RunError(f"notebook {where}: {code!r} in the parameters cell is not 'name = value'")
    try:
        value = ast.literal_eval(statement.value)
    except ValueError as error:
        raise RunError(
            f"notebook {where}: {code!r} in the parameters cell is derived, and would keep the "
            "default's value: move it to the cell after"
        ) from error
    if isinstance(value, (tuple, set, bytes, complex)):
        raise RunError(
            f"notebook {where}: {code!r} in the parameters cell is a {type(value).__name__}, which "
            "papermill turns into text: use a list"
        )
    return targets[0].id, value, getattr(statement, "annotation", None)


def _types(value: Any, annotation: ast.expr | None) -> set[type]:
    """The types a parameter accepts: the annotation's, else the default's."""
    named = set()
    for node in ast.walk(annotation) if annotation is not None else ():
        if isinstance(node, ast.Name) and node.id in TYPE_NAMES:
            named.add(TYPE_NAMES[node.id])
        elif isinstance(node, ast.Constant) and node.value is None:
            named.add(NoneType)
    if named:
        return named | {type(value)}
    return {float, int, str, NoneType} if value is None else {type(value)}


def fingerprint(run: Run) -> str:
    """sha256 of parameters, notebook code and the helpers it uses: what decides the run's numbers.

    Package versions are not part of it (a record names them): an upgrade reruns nothing.
    A text file named by a parameter counts with its content. The tables notebook depends on the
    records of all other runs and on how they are shown.
    """
    code = _notebook_code(run.source_path) + _own_method(run)
    parts = [json.dumps(run.effective, sort_keys=True), *map(_normalised, code), core_code()]
    parts += [_hash(path.read_bytes()) for path in _named_files(run)]
    if run.notebook == TABLES_NOTEBOOK:
        records = sorted(run.record_path.parent.glob("*.json"))
        parts += [_hash(path.read_bytes()) for path in records if path != run.record_path]
    return _hash("\0".join(parts).encode())


def _hash(data: bytes) -> str:
    """sha256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _notebook_code(path: Path) -> list[str]:
    """The code cells of a notebook that decide its numbers: see SHOW_TAGS."""
    code = [cell for cell in read_notebook(path)["cells"] if cell["cell_type"] == "code"]
    return [_source(cell) for cell in code if not SHOW_TAGS & set(_tags(cell))]


def core_code() -> str:
    """The code that decides numbers, without comments, docstrings and layout: see CORE_FOLDERS.

    Which files these are is asked of the folders at each call, so that a module cannot be left
    out by being added, moved or renamed.
    """
    package = root() / "helpers"
    # the package's own __init__ only says where names live
    files = {path for path in package.glob("*.py") if path.name != "__init__.py"}
    files |= {path for folder in CORE_FOLDERS for path in (package / folder).rglob("*.py")}
    named = {path.relative_to(package).as_posix(): path for path in files}
    code = {name: _normalised(named[name].read_text(encoding="utf-8")) for name in sorted(named)}
    return json.dumps(code)


def _tree(source: str) -> ast.Module | None:
    """The syntax tree of Python source, None for other text.

    A notebook may hold %magic lines; they are blanked, as they only set up Colab or the display.
    """
    try:
        return ast.parse(re.sub(r"(?m)^([ \t]*)[%!].*$", r"\1pass", source))
    except SyntaxError:
        return None


@functools.lru_cache(maxsize=512)
def _normalised(source: str) -> str:
    """Python source without comments, docstrings and layout; other text as it is."""
    tree = _tree(source)
    if tree is None:
        return source
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                del body[0]
    return ast.dump(tree)


def _named_files(run: Run) -> list[Path]:
    """Text files that the parameters name, so that a changed text is a changed run."""
    paths = [root() / value for value in run.effective.values() if isinstance(value, str) and value]
    return [path for path in paths if path.suffix in (".txt", ".jsonl") and path.is_file()]


def _own_method(run: Run) -> list[str]:
    """The code of the run's method if a reader added it (see `helpers.methods.get_method`)."""
    path = own_method_file(str(run.effective.get("method", "")))
    return [path.read_text(encoding="utf-8")] if path.is_file() else []


def assets_needed(runs: Iterable[Run]) -> list[str]:
    """The pinned downloads that runs read (names of `helpers.assets.ASSETS`), in a fixed order."""
    wanted = {
        "model": lambda asked: asked.get("model") in ("embedded", "tiny"),  # "tiny": its tokenizer
        "c4": lambda asked: asked.get("calibration") == "embedded",
        "wiki": lambda asked: asked.get("evaluation") == "embedded",
        "tasks": lambda asked: "tasks" in asked and asked.get("source") == "embedded",
    }
    every = [run.effective for run in runs]
    return [name for name, reads in wanted.items() if any(map(reads, every))]


def under_way(runs: Iterable[Run], held: Collection[str]) -> set[str]:
    """The ids of those runs that are under way, where `held` are the plans that a runner holds."""
    return {run.id for run in runs if run.plan in held and run.job_path.exists()}


def recorded_fingerprint(run: Run) -> str | None:
    """The fingerprint in the run's record; None if there is no record that can be used."""
    try:
        return read_record(run.record_path).get("fingerprint")
    except RecordError:
        return None


def is_done(run: Run) -> bool:
    """Whether the run's record is there and still stands for this code and these parameters."""
    return recorded_fingerprint(run) == fingerprint(run)


def move_orphans(plan: str, runs: Iterable[Run]) -> list[str]:
    """Move records without a run file out of records/, where tables would count them.

    They go to `results/<plan>/stale/`. Returns their file names.
    """
    folder = results_dir(plan) / "records"
    known = {run.record_path.name for run in runs}
    moved = []
    for path in sorted(folder.glob("*.json")):
        if path.name not in known:
            stale = results_dir(plan) / "stale"
            stale.mkdir(exist_ok=True)
            path.replace(stale / path.name)
            moved.append(path.name)
    return moved
