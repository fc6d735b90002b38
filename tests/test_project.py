"""The house rules that can be checked by reading files: notebooks, modules, environments, make."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from helpers.paths import root
from helpers.runner import plan as plans

ROOT = root()
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MODULES = sorted(path for path in (ROOT / "helpers").rglob("*.py") if path.stem != "__init__")
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
MACHINE_PATH = re.compile(r"""(?<![\w.~])/(?:home|Users|root|work|mnt|tmp)/\w""")


def cells(path: Path, kind: str | None = None) -> list[dict]:
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if kind is None or cell["cell_type"] == kind]


def tagged(path: Path, tag: str) -> list[str]:
    return [source(cell) for cell in cells(path) if tag in cell["metadata"].get("tags", [])]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def code_lines(text: str) -> list[str]:
    """Lines that hold code."""
    return [line for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


def by_name(path: Path) -> str:
    return path.name


# --- notebooks -----------------------------------------------------------------------------


def test_the_notebooks_are_there() -> None:
    names = {path.stem for path in NOTEBOOKS}
    assert names >= {
        "00_start_here",
        "01_calibration_capture",
        "02_admm_layer_solve",
        "03_mask_schedule",
        "04_prune_model",
        "05_zero_shot",
        plans.TABLES_NOTEBOOK,
    }


@pytest.mark.parametrize("path", NOTEBOOKS, ids=by_name)
def test_notebook_is_stripped(path: Path) -> None:
    for cell in cells(path, "code"):
        assert cell["outputs"] == [] and cell["execution_count"] is None
    metadata = json.loads(path.read_text(encoding="utf-8"))["metadata"]
    assert "widgets" not in metadata and "papermill" not in metadata
    assert metadata["kernelspec"]["name"] == "python3"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=by_name)
def test_notebook_anatomy(path: Path) -> None:
    first = cells(path)[0]
    assert first["cell_type"] == "markdown"
    assert re.match(r"# .+\?\n", source(first)), "the title asks a question"
    assert len(tagged(path, "parameters")) == 1
    assert len(tagged(path, "colab-setup")) == 1
    assert len(tagged(path, "record")) == 1
    defaults, _ = plans.read_parameters_cell(path)
    assert defaults["record_path"] == ""
    for line in tagged(path, "parameters")[0].splitlines():
        assert "#" in line, f"a comment is missing: {line}"
    assert "check_parameters(" in "".join(source(cell) for cell in cells(path, "code")[2:5])


def test_colab_setup_is_the_same_everywhere() -> None:
    setups = {tagged(path, "colab-setup")[0] for path in NOTEBOOKS}
    assert len(setups) == 1
    setup = setups.pop()
    assert len(setup.splitlines()) == 3
    assert '{"drive": False}' in setup and "GIT_TERMINAL_PROMPT=0" in setup


@pytest.mark.parametrize("path", NOTEBOOKS, ids=by_name)
def test_notebook_budgets(path: Path) -> None:
    total, definitions = 0, 0
    for cell in cells(path, "code"):
        text = source(cell)
        # the parameters cell grows with the notebook's inputs; the others are steps
        if "parameters" not in cell["metadata"].get("tags", []):
            assert len(code_lines(text)) <= 15, text
        # what is to play with, and what is the same everywhere, need not be read
        if not {"explorer", "colab-setup"} & set(cell["metadata"].get("tags", [])):
            total += len(code_lines(text))
        definitions += len(re.findall(r"(?m)^\s*(?:async )?(?:def|class) ", text))
    assert total <= 130 and definitions <= 1


def test_notebooks_do_not_fix_a_device_or_a_path() -> None:
    for path in NOTEBOOKS:
        text = path.read_text(encoding="utf-8")
        assert "cuda:0" not in text and ".cuda()" not in text
        assert "raises-exception" not in text


# --- helpers -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", MODULES, ids=by_name)
def test_module_style(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a module says what it holds"
    assert "from __future__ import annotations" in text
    assert "cuda:0" not in text and "pickle.load" not in text
    assert not re.search(r"trust_remote_code\s*=\s*True", text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"print in line {node.lineno}"
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else ""
            raises_again = any(isinstance(item, ast.Raise) for item in node.body)
            assert caught, f"blind except in line {node.lineno}"
            assert caught not in ("Exception", "BaseException") or raises_again
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            check_length(node)
    for node in [tree, *(item for item in tree.body if isinstance(item, ast.ClassDef))]:
        for item in node.body:
            if isinstance(item, ast.FunctionDef):
                check_signature(item)


def check_length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    """At most 60 lines without the docstring."""
    documented = ast.get_docstring(node, clean=False)
    lines = node.end_lineno - node.lineno + 1
    if documented is not None:
        lines -= node.body[0].end_lineno - node.body[0].lineno + 1
    assert lines <= 60, f"{node.name} has {lines} lines"


def check_signature(node: ast.FunctionDef) -> None:
    """A public function has a docstring, and every argument a type."""
    inherited = node.name == "construct_mapping"
    assert ast.get_docstring(node) or node.name.startswith("_") or inherited, node.name
    if any(ast.unparse(item).startswith("register(") for item in node.decorator_list):
        return  # a method's types are those of the registry's one signature
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    untyped = [item.arg for item in arguments if item.annotation is None]
    assert set(untyped) <= {"self", "cls"}, f"{node.name}: no type for {untyped}"


def test_importing_the_runner_is_light() -> None:
    heavy = "{'torch', 'pandas', 'distributed', 'helpers.runner.cluster'}"
    code = f"import sys, helpers.runner.run; sys.exit(len({heavy} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert answer.returncode == 0


# --- plans ---------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", ["smoke", "laptop", "full", "t4", "paper"])
def test_committed_plans_are_sound(plan: str) -> None:
    runs = plans.read_plan(plan)
    assert runs[-1].notebook == plans.TABLES_NOTEBOOK
    cells_asked = [json.dumps([run.notebook, run.effective], sort_keys=True) for run in runs]
    assert len(set(cells_asked)) == len(cells_asked), "two run files ask for the same run"


# --- environments --------------------------------------------------------------------------


def requirement(line: str) -> tuple[str, str]:
    """Name and range of a requirement."""
    name, bounds = re.fullmatch(r"([A-Za-z0-9._-]+)\s*(.*)", line).groups()
    return name.lower().replace("_", "-"), bounds.replace(" ", "")


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements() -> dict[str, str]:
    declared = project()
    lines = declared["dependencies"] + declared["optional-dependencies"]["dev"]
    return dict(requirement(line) for line in lines)


def test_environment_yml_is_in_step() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    listed = [line for line in environment["dependencies"] if isinstance(line, str)]
    conda = dict(requirement(line) for line in listed)
    assert conda.pop("python") == project()["requires-python"]
    conda.pop("pip")
    wanted = {CONDA_NAMES.get(name, name): bounds for name, bounds in requirements().items()}
    assert conda == wanted
    assert {"pip": ["-e ."]} in environment["dependencies"]


def test_python_is_not_capped() -> None:
    assert project()["requires-python"] == ">=3.11"


def test_constraints_pin_what_is_required() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    pins = dict(requirement(line) for line in lines)
    assert set(requirements()) <= set(pins)
    assert pins.pop("torch").startswith(">="), "torch's builds have labels of their own"
    assert "+" not in "".join(pins.values()) and "@" not in text
    assert all(re.fullmatch(r"==[\w.]+", bounds) for bounds in pins.values())


def test_imports_are_declared() -> None:
    """What helpers and notebooks import is in pyproject.toml."""
    declared = {name.replace("-", "_") for name in requirements()} | {"helpers", "yaml", "IPython"}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            tops = {name.split(".")[0] for name in names} - {"__future__"}
            assert tops <= declared | set(sys.stdlib_module_names), f"{path.name}: {tops}"


# --- make, CI and what is committed --------------------------------------------------------


def makefile() -> str:
    return (ROOT / "Makefile").read_text(encoding="utf-8")


def test_make_targets_are_never_committed_files() -> None:
    targets = set(re.findall(r"(?m)^([\w$()./-]+):(?!=)", makefile())) - {".PHONY", ".NOTPARALLEL"}
    phony = set(re.search(r"(?m)^\.PHONY: (.*)$", makefile())[1].split())
    assert targets - phony == {"$(INSTALLED)", "$(INSTALLED_UI)"}
    assert "INSTALLED := $(VENV)/" in makefile() and "INSTALLED_UI := $(VENV)/" in makefile()
    assert ".venv" in (ROOT / ".gitignore").read_text(encoding="utf-8").split()


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--no-print-directory", "-C", str(ROOT), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ, LC_ALL="C", MAKEFLAGS=""),
    )


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@needs_make
def test_make_help_is_the_default_and_lists_every_target() -> None:
    answer = make()
    phony = set(re.search(r"(?m)^\.PHONY: (.*)$", makefile())[1].split())
    shown = {line.split()[0] for line in answer.stdout.splitlines()[1:]}
    assert answer.returncode == 0 and shown == phony


@needs_make
@pytest.mark.parametrize("python", ["false", "/nowhere/python3"])
def test_make_without_a_fitting_python(python: str, tmp_path: Path) -> None:
    answer = make("setup", f"VENV={tmp_path / 'venv'}", f"PYTHON={python}")
    lines = answer.stderr.strip().splitlines()
    assert answer.returncode == 2 and len(lines) == 2  # ours, and make's own
    assert "Python 3.11 or newer is needed" in lines[0] and "PYTHON=python3.12" in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_ci_does_what_make_does() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text(encoding="utf-8")
    for command in ("make test", "make test-ui", "make reproduce PLAN=smoke", "make lint"):
        assert command in text
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    triggers = workflow[True]  # YAML reads the key "on" as true
    assert "push" in triggers and triggers["schedule"][0]["cron"].split()[2] != "*"
    job = workflow["jobs"]["run"]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert {"run": ".ci/run"} in job["steps"]


def committed() -> Iterator[Path]:
    """Text files that are, or would be, in git."""
    sources = ("helpers", "benchmarks", "notebooks", "runs")
    for folder in (*sources, "results/reference", ".github", ".ci"):
        yield from (path for path in (ROOT / folder).rglob("*") if path.is_file())
    yield from (path for path in ROOT.glob("*.*") if path.is_file())
    yield ROOT / "Makefile"


def test_no_path_of_a_machine_is_committed() -> None:
    text_files = {".py", ".ipynb", ".yaml", ".yml", ".json", ".md", ".toml", ".txt", ".csv", ""}
    for path in committed():
        if path.suffix in text_files and "__pycache__" not in path.parts:
            found = MACHINE_PATH.search(path.read_text(encoding="utf-8"))
            assert found is None, f"{path.relative_to(ROOT)} holds {found and found[0]}"


@needs_make
def test_make_clean_leaves_what_is_committed(tmp_path: Path) -> None:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "results"], capture_output=True, text=True, check=False
    )
    files = listed.stdout.split() or ["results/reference/x", "results/families.md"]
    made = ["results/laptop/records/a.json", "results/scratch/b.json", "results/report.html"]
    for name in [*files, *made]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    shutil.copy(ROOT / "Makefile", tmp_path)
    subprocess.run(["make", "-s", "-C", str(tmp_path), "clean"], check=True)
    assert all((tmp_path / name).exists() for name in files)
    assert not any((tmp_path / name).exists() for name in made)
