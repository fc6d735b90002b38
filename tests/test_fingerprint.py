"""What makes a run stale, and what does not: tried on copies of the packages and of a notebook."""

import itertools
import json
import shutil
from dataclasses import replace

import pytest
import small_project
from small_project import BODY, PARAMETERS, write_notebook

from helpers.code_hashes import code_hash, core_code
from helpers.paths import ZERO_SHOT_NOTEBOOK, root
from reproduction import fingerprint as module
from reproduction import plan as plans
from reproduction.fingerprint import (
    equal_hashes,
    fingerprint,
    is_current,
    notebook_hash,
    tree_hashes,
)

project = small_project.project


def test_a_run_is_stale_when_what_decides_its_numbers_changes(project, monkeypatch):
    own = project.folder
    monkeypatch.setattr(module, "own_method_file", lambda name: own / f"{name}.py")
    text = own / "own.txt"
    text.write_text("one")
    parameters = PARAMETERS + 'method = "wanda"\n'
    project.notebook(parameters)
    project.run_file("a.yaml", f"method: mine\npattern: {text}")
    (run,) = plans.read_plan("p")
    seen = [fingerprint(run)]
    assert fingerprint(replace(run, name="other", timed=True)) in seen
    project.notebook(parameters, body="# a comment\n" + BODY)
    (own / "yours.py").write_text("x = 1")
    assert fingerprint(run) in seen

    project.notebook(parameters, body=BODY + "more = 1\n")
    seen.append(fingerprint(run))
    text.write_text("two")
    seen.append(fingerprint(run))
    (own / "mine.py").write_text("x = 1")
    seen.append(fingerprint(run))
    streamed = run.parameters | {"streamed": True}
    seen.append(fingerprint(replace(run, parameters=streamed)))
    project.notebook(parameters, name=ZERO_SHOT_NOTEBOOK)
    scored = fingerprint(replace(run, notebook=ZERO_SHOT_NOTEBOOK))
    assert {*scored} - {*seen[-1]} == {"scoring"}
    assert [one.keys() for one in seen[2:]] == [
        {"core", "notebook", "files"},
        {"core", "notebook", "own", "files"},
        {"core", "notebook", "large", "own", "files"},
    ]
    assert all(one != other for one, other in itertools.combinations(seen, 2))


def test_a_record_is_current_with_the_parameters_and_the_code_of_its_run(project):
    project.notebook(PARAMETERS + "new = 1  # an int\n")
    project.run_file("a.yaml", "rho: 2.0")
    (run,) = plans.read_plan("p")
    record = {"parameters": run.effective, "fingerprint": fingerprint(run)}

    def current(**changes):
        return is_current(record | changes, run, project.folder)

    assert current()
    # gained since the record was made, with a default
    assert current(parameters={k: v for k, v in run.effective.items() if k != "new"})
    assert not current(parameters=run.effective | {"rho": 1.0})
    assert not current(parameters=run.effective | {"gone": 1})
    for part in ("core", "notebook", "files"):
        assert not current(fingerprint=record["fingerprint"] | {part: "another"})
    assert not current(fingerprint=record["fingerprint"] | {"large": "another"})
    assert not current(fingerprint="of version 0.9.0")
    assert not current(fingerprint=None)


def test_proofs_make_hashes_equal(project, monkeypatch):
    path = project.folder / "same.json"
    monkeypatch.setattr(module, "proofs_path", lambda: path)
    assert equal_hashes("a") == {"a"}
    path.write_text(
        '[{"equal": {"core": ["a", "b"], "01": ["x", "y"]}}, {"equal": {"core": ["c", "b"]}}]'
    )
    assert equal_hashes("a") == equal_hashes("c") == {"a", "b", "c"}
    assert equal_hashes("y") == {"x", "y"}
    project.run_file("a.yaml")
    (run,) = plans.read_plan("p")
    record = {"parameters": run.effective, "fingerprint": fingerprint(run)}
    today = record["fingerprint"]["core"]
    path.write_text(json.dumps([{"equal": {"core": ["earlier", today]}}]))
    for core, current in {"earlier": True, "another": False}.items():
        record["fingerprint"] = fingerprint(run) | {"core": core}
        assert is_current(record, run, project.folder) == current


def test_cells_that_compute_nothing_do_not_count(project):
    project.run_file("a.yaml")
    (run,) = plans.read_plan("p")
    numbers = {"colab-setup": 1, "explorer": 1, "figure": 1, "other": 2}
    for tag, number in numbers.items():
        found = set()
        for code in ("x = 1", "x = 2"):
            cells = [PARAMETERS, code]
            tags = [["parameters"], [tag]]
            write_notebook(project.folder / "notebooks", "01_work", cells, tags)
            found.add(fingerprint(run)["notebook"])
        assert len(found) == number, tag


def test_a_model_in_a_folder_and_a_text_count_by_what_they_hold(project):
    model = project.folder / "model"
    model.mkdir()
    weights = model / "model.safetensors"
    weights.write_bytes(b"one")
    text = project.folder / "LAW.TXT"
    text.write_text("one")
    project.notebook(PARAMETERS + 'model = "tiny"\n')
    project.run_file("a.yaml", f"model: {model}\npattern: {text}")
    (run,) = plans.read_plan("p")
    seen = [fingerprint(run)]
    (model / ".ipynb_checkpoints").mkdir()
    (model / "README.md").write_text("no weights")
    assert fingerprint(run) in seen
    weights.write_bytes(b"two")
    seen.append(fingerprint(run))
    (model / "config.json").write_text("{}")
    seen.append(fingerprint(run))
    text.write_text("two")
    seen.append(fingerprint(run))
    assert all(one != other for one, other in itertools.combinations(seen, 2))


@pytest.mark.parametrize(
    "cell",
    [
        "%matplotlib inline\nfrom reproduction import open_run, studies",
        "import reproduction.studies as s",
        "from reproduction.studies import (\n    check_method\n)",
    ],
)
def test_a_notebook_counts_the_studies_that_its_cells_name(cell, package):
    notebooks = package.parent / "notebooks"
    hashes = []
    for source in (
        cell,
        "from helpers import load_model",
        "understudies = 1",
    ):
        write_notebook(notebooks, "01_work", [PARAMETERS, source], [["parameters"], []])
        before = notebook_hash(notebooks / "01_work.ipynb")
        with open(
            package.parent / "reproduction/studies/updates.py", "a", encoding="utf-8"
        ) as stream:
            stream.write("\nextra = 1\n")
        hashes.append(before != notebook_hash(notebooks / "01_work.ipynb"))
    assert hashes == [True, False, False]


def test_the_tables_count_the_records_of_the_other_runs(project):
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
def package(tmp_path):
    """helpers/ of a copy of both packages."""
    for name in ("helpers", "reproduction"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(root() / name, tmp_path / name, ignore=ignore)
    return tmp_path / "helpers"


def test_what_leaves_the_core_as_it_is(package):
    before = core_code(package.parent)
    text = (package / "paper/admm.py").read_text("utf-8")
    text = "# a comment\n" + text.replace('"""', '"""New words. ', 1)
    (package / "paper/admm.py").write_text(text, "utf-8")
    assert core_code(package.parent) == before, "comments and docstrings"
    (package / "other").mkdir()
    others = ["explore/layer.py", "other/x.py", "own/mine.py", "model/token_trees.py"]
    for name in (*others, "__init__.py", "__main__.py"):
        (package / name).write_text("x = 1\n")
    (package / "explore" / "layer.py").rename(package / "explore" / "solve.py")
    assert core_code(package.parent) == before


def test_what_a_tool_leaves_beside_code_is_no_code(package):
    before = tree_hashes(package.parent)
    for folder in ("", "data", "paper/fast", "../reproduction/studies", "large"):
        hidden = package / folder / ".ipynb_checkpoints"
        hidden.mkdir()
        (hidden / "gram-checkpoint.py").write_text("x = 1\n")
    (package / ".gram.py").write_text("x = 1\n")
    assert tree_hashes(package.parent) == before


def test_what_changes_the_core(package):
    seen = [core_code(package.parent)]
    core = ["paper/admm.py", "paper/fast/__init__.py", "beyond/new.py", "paths.py"]
    for name in (*core, "data/tasks.py", "data/pins.yaml"):
        with open(package / name, "a", encoding="utf-8") as stream:
            stream.write("\nextra = 1\n")
        seen.append(core_code(package.parent))
    (package / "paper/masks.py").unlink()
    seen.append(core_code(package.parent))
    # within the core, out of it, and back
    moves = ["paper/gram.py", "grams.py", "paper/fast/grams.py", "data/grams.py"]
    for old, new in itertools.pairwise([*moves, "large/grams.py", "back.py"]):
        (package / old).rename(package / new)
        seen.append(core_code(package.parent))
    assert all(one != other for one, other in itertools.combinations(seen, 2))


def test_what_an_error_says_does_not_count_but_that_it_is_raised_does():
    source = 'def f(x):\n    if x:\n        raise ValueError(f"{x} is bad") from x\n    return 1\n'
    other = source.replace('ValueError(f"{x} is bad") from x', "Bad")
    assert code_hash(source) == code_hash(other)
    assert code_hash(source) != code_hash(source.replace("raise", "return"))
    assert code_hash(source) != code_hash(source.replace("if x", "if not x"))
    # what is not Python counts as it is
    assert code_hash("%cd x\n") != code_hash("%cd y\n")


def test_a_hash_is_the_same_on_every_python():
    """Of all that Python's versions write differently: its syntax trees have other empty fields."""
    source = """
@decorated
class A(B, metaclass=M):
    x: int = None

    def f(self, a, /, b=1, *c, d=(), **e) -> list[int]:
        return lambda: [*a, {**e}, -0.0, 1e-7, 2j, b"x", ..., not b]

async def g():
    async with h() as (i, _), j:
        yield f"{i!r:>{_}} {{}} " "and" f'{j["k"]}'
    match i:
        case [1, *_] | {"a": A(x=None)} if j:
            global k
    try:
        del k
    except* (E, F) as error:
        raise
    else:
        x[1:, ...] = (y := [z for z in a if z])
"""
    assert code_hash(source)[:16] == "c1169356f30d06a4"
