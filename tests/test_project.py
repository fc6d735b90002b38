"""House rules that neither ruff nor import-linter checks: notebooks, environments, make."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from helpers.paths import TABLES_NOTEBOOK, root, visible_files
from reproduction.cell_order import needs_and_binds
from reproduction.parameters import code_cells
from reproduction.plan import read_plan

ROOT = root()
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# folders of what is committed and read as text
FOLDERS = (
    "helpers reproduction benchmarks examples notebooks runs docs book .github .ci "
    "results/reference"
)
KINDS = ".py .ipynb .yaml .yml .json .md .toml .txt .csv"
# a path of somebody's machine, and code of a model that is run
FORBIDDEN = re.compile(
    r"(?<![\w.~])/(?:home|Users|root|work|mnt|tmp)/\w|trust_remote_code\s*=\s*True"
)
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}


def test_what_is_never_committed():
    files = [*ROOT.glob("[!.]*.*"), ROOT / "Makefile"]
    for folder in FOLDERS.split():
        files += (ROOT / folder).rglob("*")
    for path in files:
        if path.is_file() and path.suffix in ("", *KINDS.split()):
            assert not FORBIDDEN.search(path.read_text("utf-8")), path


# --- notebooks -----------------------------------------------------------------------------


def cells(path, tag=""):
    """The text of a notebook's code cells, or of those with a tag."""
    return [text for text, tags in code_cells(path) if not tag or tag in tags]


def test_colab_setup_is_the_same_everywhere():
    ((setup,),) = {tuple(cells(path, "colab-setup")) for path in NOTEBOOKS}
    assert "COLAB_RELEASE_TAG" in setup


def names(tree, context):
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
    return {node.id for node in found if isinstance(node.ctx, context)}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_cell_that_only_draws_leaves_nothing_to_a_cell_that_computes(path):
    """So it can be left out of a fingerprint."""
    drawing = cells(path, "figure")
    drawn = set()
    for cell in cells(path)[1:]:  # the first is for Google Colab
        tree = ast.parse(cell)
        stored = names(tree, ast.Store)
        if cell not in drawing:
            assert not needs_and_binds(tree)[0] & drawn
            drawn -= stored
            continue
        drawn |= stored
        for part in ast.walk(tree):
            # what it changes is its own
            if isinstance(part, ast.Subscript | ast.Attribute) and isinstance(
                part.ctx, ast.Store
            ):
                assert names(part.value, ast.Load) <= drawn
        assert not re.search(r"(?m)^ *(def|class|import|from|del) ", cell)


@pytest.mark.parametrize(
    "plan", ["smoke", "laptop", "full", "beyond", "second", "original", "t4", "paper"]
)
def test_committed_plans_are_sound(plan):
    runs = read_plan(plan)
    assert runs[-1].notebook == TABLES_NOTEBOOK
    requests = {f"{run.notebook} {sorted(run.effective.items())}" for run in runs}
    assert len(requests) == len(runs), "two run files ask for the same run"


# --- environments --------------------------------------------------------------------------


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def requirements(lines):
    """Name → range."""
    found = map(Requirement, lines)
    return {canonicalize_name(each.name): str(each.specifier) for each in found}


REQUIRED = requirements(
    PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
)


def test_environment_yml_is_in_step():
    *lines, pip = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))[
        "dependencies"
    ]
    assert pip == {"pip": ["-e ."]}
    conda = requirements(lines)
    del conda["pip"]
    wanted = {CONDA_NAMES.get(name, name): REQUIRED[name] for name in REQUIRED}
    assert conda == wanted | {"python": PROJECT["requires-python"]}


@pytest.mark.parametrize("python", ["3.11.0", "3.11.2", "3.12.0", "3.13.0", "3.14.0"])
def test_every_supported_python_has_its_pins(python):
    """By what the installed packages say of the Pythons that they run on."""
    place = default_environment() | {"python_full_version": python}
    place["python_version"] = python.rpartition(".")[0]
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = {}
    for pin in (Requirement(line) for line in lines if line[:1] != "#"):
        if not pin.marker or pin.marker.evaluate(place):
            assert pin.name not in pins, "a package has two versions at once"
            pins[pin.name] = pin.specifier
    assert pins.keys() >= REQUIRED.keys()
    # torch's builds have labels of their own
    exact = {name for name, pin in pins.items() if str(pin).startswith("==")}
    assert pins.keys() - exact == {"torch"}
    checked = 0
    for package in importlib.metadata.distributions():
        pin = pins.get(canonicalize_name(package.metadata["Name"]))
        needs = package.metadata.get("Requires-Python")
        if pin and needs and pin.contains(package.version):
            assert SpecifierSet(needs).contains(python), package.metadata["Name"]
            checked += 1
    assert checked > 80  # with Colab's versions fewer are the pinned ones


def test_importing_is_light():
    heavy = {"torch", "pandas", "distributed", "lm_eval", "datasets"}
    modules = "sys, helpers.cli, reproduction.commands, helpers.data.tasks"
    code = f"import {modules}; assert not {heavy} & {{*sys.modules}}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


IMPORT = r"(?m)^ *(?:import|from) (\w+)[\w.]*(?: import | as |$)"


def test_imports_are_declared():
    known = {name.replace("-", "_") for name in REQUIRED} | sys.stdlib_module_names
    # the last is Colab's own
    known |= {"helpers", "reproduction", "yaml", "IPython", "google"}
    for package in ("helpers", "reproduction"):
        for path in visible_files(ROOT / package, "**/*.py"):
            if path.parent.name == "own":  # a user's
                continue
            text = path.read_text("utf-8")
            found = set(re.findall(IMPORT, text))
            assert found <= known, path


# --- make ----------------------------------------------------------------------------------


def make(*arguments, folder=ROOT):
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    return subprocess.run(
        ["make", "--no-print-directory", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        env=dict(os.environ, LC_ALL="C", MAKEFLAGS=""),
    )


def test_make_targets_are_never_files_and_help_lists_them():
    text = (ROOT / "Makefile").read_text("utf-8")
    phony = re.search(r"(?m)^\.PHONY: (.*)$", text)[1].split()
    # the others are files in .venv, which git ignores
    assert set(phony) == set(re.findall(r"(?m)^([\w/-]+):(?!=)", text))
    shown = [line.split()[0] for line in make().stdout.splitlines()[1:]]
    assert sorted(shown) == sorted(phony)


@pytest.mark.parametrize(
    "given, word",
    [
        ("-n reproduce plan=smoke", "did you mean PLAN?"),
        ("-n reproduce colour=red", "colour"),
        ("-n reproduce OS=Windows_NT", "WSL"),
        ("owner", "GitHub"),
        ("owner NAME=me@home", "me@home"),
    ],
)
def test_make_refuses_what_it_does_not_know(given, word):
    answer = make(*given.split())
    assert answer.returncode == 2
    assert word in answer.stderr
    assert not answer.stdout


def test_make_looks_at_a_plan_before_anything_is_fetched():
    lines = make("-n", "reproduce", "PLAN=lapto").stdout
    assert lines.index("list --plan lapto") < lines.index("helpers assets")


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_make_owner_writes_the_name_everywhere(tmp_path):
    for name in ("notebooks", "docs", "book"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("README.md", "CITATION.cff", "Makefile"):
        shutil.copy(ROOT / name, tmp_path)
    files = files_of(tmp_path)
    address = re.compile(rb"(?:github(?:\.com)?|/gh)/([\w-]+)/pruning-reproduction")

    def owners():
        return address.findall(b"".join(path.read_bytes() for path in files))

    count = len(owners())
    assert count >= 2 * len(NOTEBOOKS)
    for name in ("octo-cat", "another"):  # who forks a fork
        assert make("owner", f"NAME={name}", folder=tmp_path).returncode == 0
        assert owners() == [name.encode()] * count
    assert files_of(tmp_path) == files, "no copy is left behind"


def test_make_clean_leaves_what_is_committed(tmp_path):
    kept = ["results/families.md", "results/reference/laptop/records/a.json"]
    for name in (*kept, "results/laptop/records/a.json", "results/book/index.html"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    shutil.copy(ROOT / "Makefile", tmp_path)
    assert make("clean", folder=tmp_path).returncode == 0
    assert files_of(tmp_path / "results") == [tmp_path / name for name in kept]
