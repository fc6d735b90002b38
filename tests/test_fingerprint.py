"""What makes a run stale, and what does not: tried on copies of the package and of a notebook."""

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import small_project
from small_project import BODY, PARAMETERS, Project, write_notebook

from helpers.paths import root
from helpers.runner import fingerprint as module
from helpers.runner import plan as plans
from helpers.runner.fingerprint import code_hash, core_code, fingerprint

project = small_project.project


def test_a_run_is_stale_when_what_decides_its_numbers_changes(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "own_method_file", lambda name: project.folder / f"{name}.py")
    text = project.folder / "own.txt"
    text.write_text("one")
    parameters = PARAMETERS + 'method = "wanda"\n'
    project.notebook(parameters)
    project.run_file("a.yaml", f"method: mine\npattern: {text}")
    (run,) = plans.read_plan("p")
    seen = {fingerprint(run)}
    assert fingerprint(replace(run, name="other")) in seen
    project.notebook(parameters, body="# a comment\n" + BODY)
    (project.folder / "yours.py").write_text("x = 1")
    assert fingerprint(run) in seen

    seen.add(fingerprint(replace(run, parameters=run.parameters | {"rho": 3.0})))
    project.notebook(parameters, body=BODY + "more = 1\n")
    seen.add(fingerprint(run))
    text.write_text("two")
    seen.add(fingerprint(run))
    (project.folder / "mine.py").write_text("x = 1")
    seen.add(fingerprint(run))
    assert len(seen) == 5


def test_cells_for_colab_and_explorers_do_not_count(project: Project) -> None:
    project.run_file("a.yaml")
    (run,) = plans.read_plan("p")
    for tag, number in {"colab-setup": 1, "explorer": 1, "other": 2}.items():
        found = set()
        for code in ("x = 1", "x = 2"):
            cells, tags = [PARAMETERS, code], [["parameters"], [tag]]
            write_notebook(project.folder / "notebooks", "01_work", cells, tags)
            found.add(fingerprint(run))
        assert len(found) == number, tag


def test_the_tables_count_the_records_of_the_other_runs(project: Project) -> None:
    project.notebook(PARAMETERS, name=plans.TABLES_NOTEBOOK)
    project.run_file("a.yaml", notebook=plans.TABLES_NOTEBOOK)
    (run,) = plans.read_plan("p")
    before = fingerprint(run)
    run.record_path.parent.mkdir(parents=True)
    run.record_path.write_text("{}")
    assert fingerprint(run) == before, "not its own"
    run.record_path.with_name("01_work--b.json").write_text("{}")
    assert fingerprint(run) != before


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of helpers/."""
    folder = tmp_path / "helpers"
    shutil.copytree(root() / "helpers", folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "beyond").mkdir(exist_ok=True)
    return folder


def test_what_leaves_the_core_as_it_is(package: Path) -> None:
    before = core_code(project=package.parent)
    text = (package / "admm.py").read_text(encoding="utf-8")
    text = "# a comment\n" + text.replace('"""', '"""New words. ', 1)
    (package / "admm.py").write_text(text, encoding="utf-8")
    assert core_code(project=package.parent) == before, "comments and docstrings"
    (package / "wing").mkdir()
    for name in ("report/plots.py", "wing/x.py", "own/mine.py", "__init__.py", "__main__.py"):
        (package / name).write_text("x = 1\n")
    (package / "report" / "plots.py").rename(package / "report" / "drawn.py")
    assert core_code(project=package.parent) == before


def test_what_changes_the_core(package: Path) -> None:
    seen = [core_code(project=package.parent)]
    for name in ("admm.py", "fast/__init__.py", "another.py", "beyond/another.py", "data/tasks.py"):
        with open(package / name, "a", encoding="utf-8") as stream:
            stream.write("\nextra = 1\n")
        seen.append(core_code(project=package.parent))
    (package / "masks.py").unlink()
    seen.append(core_code(project=package.parent))
    moves = ["gram.py", "grams.py", "fast/grams.py", "data/grams.py", "report/grams.py", "back.py"]
    for old, new in itertools.pairwise(moves):  # within the core, out of it, and back
        (package / old).rename(package / new)
        seen.append(core_code(project=package.parent))
    assert all(one != other for one, other in itertools.combinations(seen, 2))


def test_what_an_error_says_does_not_count_but_that_it_is_raised_does() -> None:
    source = 'def f(x):\n    if x:\n        raise ValueError(f"{x} is bad") from x\n    return 1\n'
    assert code_hash(source) == code_hash(source.replace('ValueError(f"{x} is bad") from x', "Bad"))
    assert code_hash(source) != code_hash(source.replace("raise", "return"))
    assert code_hash(source) != code_hash(source.replace("if x", "if not x"))
    assert code_hash("%cd x\n") != code_hash("%cd y\n"), "what is not Python counts as it is"
