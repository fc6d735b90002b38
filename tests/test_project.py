"""House rules that neither ruff nor import-linter checks: notebooks, environments, make."""

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib

import nbformat
import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import helpers
from helpers.paths import TABLES_NOTEBOOK, root
from helpers.runner import read_parameters_cell
from helpers.runner.parameters import code_cells
from helpers.runner.plan import read_plan

ROOT = root()
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# without a user's own methods
MODULES = sorted(
    path
    for package in ("helpers", "reproduction")
    for path in (ROOT / package).rglob("[!.]*.py")
    if ".ipynb_checkpoints" not in path.parts and path.parent.name != "own"
)
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
MACHINE_PATH = re.compile(r"""(?<![\w.~])/(?:home|Users|root|work|mnt|tmp)/\w""")


# --- notebooks -----------------------------------------------------------------------------


def read_cells(path):
    return nbformat.read(path, as_version=4).cells


def cells(path, tag=""):
    """The text of a notebook's code cells, or of those with a tag."""
    return [text for text, tags in code_cells(path) if not tag or tag in tags]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_anatomy(path):
    first = read_cells(path)[0].source
    pictures = re.findall(r"!\[.{30,}\]\((\.\./[^)]+)\)", first)
    assert pictures and all((path.parent / each).is_file() for each in pictures)
    (parameters,) = cells(path, "parameters")
    assert all("  # " in line for line in parameters.splitlines()), "a comment"
    assert read_parameters_cell(path)[0]["record_path"] == ""
    (record,) = cells(path, "record")
    assert "run.write(" in record and cells(path)[-1] == record
    assert f'open_run("{path.stem}", globals())' in "".join(cells(path)[2:4])


def test_colab_setup_is_the_same_everywhere():
    ((setup,),) = {tuple(cells(path, "colab-setup")) for path in NOTEBOOKS}
    # JupyterLab shows the first line of a folded cell whole, and as wide as it is
    assert re.match(r'# .{9,60}\n!test -z "\$COLAB_RELEASE_TAG" \|\| \(', setup)


def names(tree, context):
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
    return {node.id for node in found if isinstance(node.ctx, context)}


def names_read(cell):
    """The names that a cell reads before it has assigned them itself."""
    known = set()
    read = set()
    for statement in ast.parse(cell).body:
        loops = [
            node
            for node in ast.walk(statement)
            if isinstance(node, ast.For | ast.comprehension)
        ]
        own = set().union(*(names(loop.target, ast.Store) for loop in loops))
        read |= names(statement, ast.Load) - own - known
        known |= names(statement, ast.Store)
    return read


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_cell_that_only_draws_leaves_nothing_to_a_cell_that_computes(path):
    """So it can be left out of a fingerprint."""
    drawing = cells(path, "figure")
    drawn = set()
    for cell in cells(path)[1:]:  # the first is for Google Colab
        tree = ast.parse(cell)
        if cell in drawing:
            drawn |= names(tree, ast.Store)
            changed = [
                part.value
                for part in ast.walk(tree)
                if isinstance(part, ast.Subscript | ast.Attribute)
                and isinstance(part.ctx, ast.Store)
            ]
            assert set().union(*(names(part, ast.Load) for part in changed)) <= drawn
            assert not re.search(r"(?m)^ *(def|class|import|from|del) ", cell)
        else:
            assert not names_read(cell) & drawn
            drawn -= names(tree, ast.Store)


# --- helpers -------------------------------------------------------------------------------


def test_no_code_of_a_model_is_trusted():
    code = "".join(path.read_text("utf-8") for path in MODULES)
    assert not re.search(r"trust_remote_code\s*=\s*True", code)


def code_of_users():
    """What calls the package: cells, Python on pages, examples, benchmarks, own methods."""
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("book/*.md")]
    texts = [page.read_text("utf-8") for page in pages]
    for path in NOTEBOOKS:
        yield from set(cells(path)) - set(cells(path, "colab-setup"))
        # an exercise's solution is text too
        texts += [cell.source for cell in read_cells(path)]
    for text in texts:
        yield from re.findall(r"```python\n([^!]*?)```", text)
    for folder in ("benchmarks", "book", "examples", "helpers/own"):
        for path in (ROOT / folder).glob("*.py"):
            yield path.read_text("utf-8")


def test_every_public_name_has_a_caller():
    imported = set()
    for code in code_of_users():
        for node in ast.walk(ast.parse(code)):
            if (
                isinstance(node, ast.ImportFrom)
                and node.module.split(".")[0] == "helpers"
            ):
                imported |= {alias.name for alias in node.names}
    # which prune_loaded calls, and which is kept for users of 0.10
    alone = {"prune_checkpoint", "prune_on_disk"}
    assert set(helpers.__all__) - imported <= alone


def test_importing_is_light():
    heavy = {"torch", "pandas", "distributed", "lm_eval", "datasets"}
    modules = "sys, helpers.cli, helpers.runner.commands, helpers.data.tasks"
    code = f"import {modules}; assert not {heavy} & {{*sys.modules}}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    "plan", ["smoke", "laptop", "full", "beyond", "second", "original", "t4", "paper"]
)
def test_committed_plans_are_sound(plan):
    runs = read_plan(plan)
    assert runs[-1].notebook == TABLES_NOTEBOOK
    requests = [
        json.dumps([run.notebook, run.effective], sort_keys=True) for run in runs
    ]
    assert len(set(requests)) == len(requests), "two run files ask for the same run"


# --- environments --------------------------------------------------------------------------


def requirement(line):
    """Name and range of a requirement."""
    found = Requirement(line)
    return canonicalize_name(found.name), str(found.specifier)


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def requirements():
    lines = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
    return dict(map(requirement, lines))


def test_environment_yml_is_in_step():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    listed = [line for line in environment["dependencies"] if isinstance(line, str)]
    conda = dict(map(requirement, listed))
    python = conda.pop("python")
    assert python == PROJECT["requires-python"] == ">=3.11", "Python is not capped"
    conda.pop("pip")
    assert conda == {
        CONDA_NAMES.get(name, name): b for name, b in requirements().items()
    }
    assert {"pip": ["-e ."]} in environment["dependencies"]


def pins(python="3.13.0"):
    """The requirements of constraints.txt that apply to this Python, by name."""
    place = default_environment() | {"python_full_version": python}
    place["python_version"] = ".".join(python.split(".")[:2])
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    found = [pin for pin in found if not pin.marker or pin.marker.evaluate(place)]
    by_name = {pin.name: pin for pin in found}
    assert len(by_name) == len(found), "a package has two versions at once"
    return by_name


def test_constraints_pin_what_is_required():
    exact = pins()
    assert set(requirements()) <= set(exact)
    torch = str(exact.pop("torch").specifier)
    assert ">=" in torch, "torch's builds have labels of their own"
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) for pin in exact.values())


@pytest.mark.parametrize("python", ["3.11.0", "3.11.2", "3.12.0", "3.13.0", "3.14.0"])
def test_every_supported_python_may_have_its_pins(python):
    """By what the installed packages say of the Pythons that they run on."""
    exact = pins(python)
    assert set(pins()) <= set(exact)
    checked = 0
    for package in importlib.metadata.distributions():
        pin = exact.get(canonicalize_name(package.metadata["Name"]))
        needs = package.metadata.get("Requires-Python")
        if pin and needs and pin.specifier.contains(package.version):
            assert python in SpecifierSet(needs), f"{pin} needs Python {needs}"
            checked += 1
    assert checked > 100


def test_imports_are_declared():
    """What the packages import is in pyproject.toml."""
    known = {name.replace("-", "_") for name in requirements()}
    known |= {
        "helpers",
        "reproduction",
        "yaml",
        "IPython",
        "google",
    }  # the last is Colab's own
    known |= set(sys.stdlib_module_names)
    for path in MODULES:
        found = set()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.split(".")[0])
        assert found <= known, path.name


# --- make, CI and what is committed --------------------------------------------------------


MAKEFILE = (ROOT / "Makefile").read_text("utf-8")


def phony():
    return set(re.search(r"(?m)^\.PHONY: (.*)$", MAKEFILE)[1].split())


def test_make_targets_are_never_committed_files():
    targets = set(re.findall(r"(?m)^([\w$()./-]+):(?!=)", MAKEFILE))
    # these two are files in .venv, which git ignores
    files = {"$(INSTALLED)", "$(INSTALLED_UI)"}
    assert targets - phony() == files | {".PHONY", ".NOTPARALLEL"}


def make(*arguments, folder=ROOT):
    return subprocess.run(
        ["make", "--no-print-directory", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        env=dict(os.environ, LC_ALL="C", MAKEFLAGS=""),
    )


needs_make = pytest.mark.skipif(
    shutil.which("make") is None, reason="make is not installed"
)


@needs_make
def test_make_help_is_the_default_and_lists_every_target():
    answer = make()
    shown = {line.split()[0] for line in answer.stdout.splitlines()[1:]}
    assert answer.returncode == 0
    assert shown == phony()


@needs_make
@pytest.mark.parametrize(
    "given, words",
    [
        (["-n", "reproduce", "plan=smoke"], "plan is unknown: did you mean PLAN?"),
        (["-n", "reproduce", "colour=red"], "colour is unknown"),
        (["-n", "reproduce", "OS=Windows_NT"], "Linux, macOS or WSL"),
        (["owner"], "is no GitHub name"),
        (["owner", "NAME=me@home"], "'me@home' is no GitHub name"),
    ],
    ids=str,
)
def test_make_refuses_what_it_does_not_know(given, words):
    answer = make(*given)
    assert answer.returncode == 2
    assert words in answer.stderr
    assert not answer.stdout


@needs_make
def test_make_owner_writes_the_name_everywhere(tmp_path):
    for name in ("notebooks", "docs", "book"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("README.md", "CITATION.cff", "Makefile"):
        shutil.copy(ROOT / name, tmp_path)
    files = [path for path in tmp_path.rglob("*.*") if path.is_file()]
    address = re.compile(rb"(?:github(?:\.com)?|/gh)/([\w-]+)/pruning-reproduction")

    def owners():
        return address.findall(b"".join(path.read_bytes() for path in files))

    count = len(owners())
    assert count >= 2 * len(NOTEBOOKS)
    for name in ("octo-cat", "another"):  # who forks a fork
        assert make("owner", f"NAME={name}", folder=tmp_path).returncode == 0
        assert owners() == [name.encode()] * count
    # no copy is left behind, and a notebook is still one
    assert sorted(files) == sorted(p for p in tmp_path.rglob("*.*") if p.is_file())
    for path in tmp_path.glob("notebooks/*.ipynb"):
        assert cells(path, "parameters")


@needs_make
def test_make_clean_leaves_what_is_committed(tmp_path):
    kept = ["results/reference/laptop/records/a.json", "results/families.md"]
    made = ["results/laptop/records/a.json", "results/book/index.html"]
    for name in kept + made:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    shutil.copy(ROOT / "Makefile", tmp_path)
    assert make("clean", folder=tmp_path).returncode == 0
    assert all((tmp_path / name).exists() for name in kept)
    assert not any((tmp_path / name).exists() for name in made)


def test_no_path_of_a_machine_is_committed():
    folders = (
        "helpers",
        "reproduction",
        "benchmarks",
        "examples",
        "notebooks",
        "runs",
        "docs",
        "book",
    )
    files = [*ROOT.glob("[!.]*.*"), ROOT / "Makefile"]
    for folder in (*folders, ".github", ".ci", "results/reference"):
        files += (ROOT / folder).rglob("*")
    kinds = [".py", ".ipynb", ".yaml", ".yml", ".json", ".md", ".toml", ".txt", ".csv"]
    for path in files:
        if path.is_file() and path.suffix in ("", *kinds):
            found = MACHINE_PATH.search(path.read_text("utf-8"))
            assert found is None, f"{path.relative_to(ROOT)} holds {found and found[0]}"
