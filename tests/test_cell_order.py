"""What becomes of a notebook's results when its cells fail, run again, or run out of order."""

import ast
import textwrap
from contextlib import closing

import nbformat
import pytest
from shell import Shell

from helpers.errors import BadParameter, RunError
from reproduction.cell_order import CellOrder, needs_and_binds

CELLS = [
    "import math\nopen_run('a notebook')",
    "## First\nof all",
    "a = factor + 1",
    "## Second",
    "b = [a * n for n in range(3)]\nc = math.sqrt(b[1])",
    "%matplotlib is no Python",
    "## Third",
    "d = c + wanted",
    "## Aside\nneeds nothing",
    "e = 5",
]


@pytest.fixture
def shell(tmp_path):
    """An IPython in which the notebook of CELLS was opened, with a parameter `factor`."""
    book = nbformat.v4.new_notebook()
    for text in CELLS:
        kind = "markdown" if text.startswith("##") else "code"
        book.cells.append(getattr(nbformat.v4, f"new_{kind}_cell")(text))
    nbformat.write(book, tmp_path / "book.ipynb")

    def opened(_name):
        def check():
            if shell.names["factor"] != 1:
                raise BadParameter("factor has changed")

        order = CellOrder(tmp_path / "book.ipynb", shell.names, ["factor"], check)
        order.watch(shell._shell)
        shell.order = order

    with closing(Shell(tmp_path)) as shell:
        shell.names |= {"open_run": opened, "factor": 1, "wanted": 7, "a": "of before"}
        shell.run(CELLS[0])
        yield shell


def there(shell):
    """The results that are there."""
    return {name: shell.names[name] for name in "abcde" if name in shell.names}


def test_a_cell_waits_for_those_that_it_needs(shell, one_line_error):
    assert there(shell) == {}, "nothing is left of before"
    with one_line_error(RunError, "First"):  # the earliest that is not there
        shell.run("c, a")
    shell.run(CELLS[2])
    with one_line_error(RunError, "Second"):
        shell.run(CELLS[7])
    shell.run(CELLS[4])
    shell.run(CELLS[7])
    assert there(shell) == {"a": 2, "b": [0, 2, 4], "c": 2**0.5, "d": 2**0.5 + 7}


def run_all(shell):
    for cell in (2, 4, 7, 9):
        shell.run(CELLS[cell])
    return there(shell)


@pytest.mark.parametrize(
    "failing",
    [
        "a = 3\n1 / 0",
        "a = 3\nraise KeyboardInterrupt",
        "a = 3\nawait unknown",
        "a = 3; 1 / 0",
    ],
)
def test_a_cell_that_fails_leaves_nothing_that_was_made_from_it(shell, failing):
    whole = run_all(shell)
    with pytest.raises((ZeroDivisionError, KeyboardInterrupt, NameError)):
        shell.run(failing)
    assert there(shell) == {"e": 5}
    for cell in (CELLS[4], CELLS[7], "print(a)"):
        with pytest.raises(RunError):
            shell.run(cell)
    assert run_all(shell) == whole


def test_a_cell_that_runs_again_takes_back_what_was_made_from_it(shell):
    run_all(shell)
    shell.run("b, c = a, 4.0")  # another version of the second cell
    assert there(shell) == {"a": 2, "b": 2, "c": 4.0, "e": 5}
    shell.run(CELLS[7])
    assert shell.names["d"] == 11
    shell.run("d = d + 1")  # from itself: needed, and so not deleted first
    assert shell.names["d"] == 12
    shell.order.forget(["a"])
    assert there(shell) == {"e": 5}


def test_a_users_own_names_stay(shell):
    run_all(shell)
    shell.run("old = c\ndef twice(n):\n    return twice(n - 1) + d if n else c")
    shell.run(CELLS[2])
    assert shell.names["old"] == 2**0.5
    with pytest.raises(ZeroDivisionError):
        shell.run("old = 2\nold / 0")
    assert shell.names["old"] == 2


def test_a_parameter_that_has_changed(shell, one_line_error):
    run_all(shell)
    shell.names["factor"] = 2
    for cell in (CELLS[2], CELLS[7], "print(factor)"):
        with one_line_error(BadParameter, "factor"):
            shell.run(cell)
    assert shell.run("1 + 1") == 2
    shell.run("factor = 1")  # as the parameters cell does
    run_all(shell)
    shell.names["factor"] = 2
    shell.run(CELLS[0])  # opens another run
    assert there(shell) == {}
    assert len(shell._shell.ast_transformers) == 1


@pytest.mark.parametrize(
    "code, needs, binds",
    [
        ("a = b; b = c", "bc", "ab"),
        ("a = [b for b in a]", "a", "a"),
        ("for a, (b, *c) in d: e = a", "d", "abce"),
        ("def a(b=c): return a(b) + d + e\ne = 1", "cd", "ae"),
        ("a = lambda b: (b, c)", "c", "a"),
        ("class a:\n    b = c", "c", "a"),
        ("with a as b, b as c: pass", "a", "bc"),
        ("a[b] = c; d.e = 1", "abcd", ""),
        ("a += 1; del a; import b as c, d.e; _ = 1", "a", "acd"),
        ("print(f'{a:{b}}', await c)", "abc", ""),
    ],
)
def test_names_of_a_cell(code, needs, binds):
    found = needs_and_binds(ast.parse(textwrap.dedent(code)))
    assert found[0] - {"print", "__name__"} == set(needs)
    assert found[1] == set(binds)
