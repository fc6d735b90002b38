"""Which cells of a notebook are done, told by the names that they bind.

`open_run` puts `CellOrder` between IPython and the cells that follow. What a cell of the notebook
binds are its results, and a result is there only while it holds:

- when a cell begins, its results of an earlier run are deleted, and all that was made from them;
- when it is interrupted or fails, what it has bound so far is deleted;
- a cell that needs a result that is not there does not begin. It raises an error that names the
  heading to go to.

So a half-pruned model never has a name, and no record holds a number of an earlier version. Names
that are not the notebook's, such as a user's own, are never touched. A result that a cell changes
in place, as in `rows["wanda"] = …`, is not followed: a notebook binds a new name instead.
"""

import ast
import dis
import json
from collections.abc import Callable, Collection, Iterable, MutableMapping
from pathlib import Path
from types import CodeType
from typing import Any

from helpers.errors import HelpersError, RunError

OPENING = "open_run"  # a cell that calls it starts from nothing
LOADS = ("LOAD_NAME", "LOAD_GLOBAL")
COMPREHENSIONS = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")


class CellOrder:
    """Refuses a cell whose results could not hold; one for the notebook that is open in a kernel.

    path: the saved notebook, whose cells say what is a result.
    namespace: the kernel's, from which results are deleted.
    parameters: a cell that needs one of these names, or a result, does not begin if check() raises.
    """

    def __init__(
        self,
        path: Path,
        namespace: MutableMapping[str, Any],
        parameters: Collection[str],
        check: Callable[[], None],
    ) -> None:
        self._headings = result_headings(path)
        self._namespace = namespace
        self._parameters = parameters
        self._check = check
        self._made_from: dict[str, set[str]] = {}  # result: those it was made from
        self._under_way: set[str] = set()  # results of the cell that is running
        self.forget(self._headings)

    def watch(self, shell: Any) -> None:
        """Follow the cells of an IPython shell, instead of any other that did so far."""
        for other in [t for t in shell.ast_transformers if isinstance(t, CellOrder)]:
            shell.ast_transformers.remove(other)
            shell.events.unregister("post_run_cell", other.end)
        shell.ast_transformers.append(self)
        shell.events.register("post_run_cell", self.end)

    def visit(self, tree: ast.Module) -> ast.Module:
        """The code of a cell that may begin, or a line that raises why it may not.

        IPython calls this with each cell. (What an event raises, it prints, and runs the cell.)
        """
        try:
            needs, binds = needs_and_binds(tree)
        except SyntaxError:  # IPython says so
            return tree
        if OPENING in needs | binds:
            return tree
        try:
            self._refuse(needs)
        except HelpersError as error:
            return _raising(error)
        results = binds & self._headings.keys()
        source = needs & self._headings.keys()
        for name in results & needs:  # made from what it was made from before, too
            source |= self._made_from.get(name, set())
        self._under_way |= results
        self.forget(results - needs)
        self._made_from |= dict.fromkeys(results, source)
        return tree

    def end(self, result: Any) -> None:
        """IPython calls this after each cell; `result` is None if one with await is stopped."""
        if result is None or not result.success:
            self.forget(self._under_way)
        self._under_way = set()

    def forget(self, names: Iterable[str]) -> None:
        """Delete results, and all that was made from them."""
        gone = self._headings.keys() & names
        while (
            more := {
                result for result, source in self._made_from.items() if source & gone
            }
            - gone
        ):
            gone |= more
        for name in gone:
            self._namespace.pop(name, None)
            self._made_from.pop(name, None)

    def _refuse(self, needs: set[str]) -> None:
        """Raise what the check raises, or RunError for the first result that is not there."""
        if needs & {*self._headings, *self._parameters}:
            self._check()
        for name, heading in self._headings.items():
            if name in needs and name not in self._namespace:
                raise RunError(
                    f"not done yet: run the cells under {heading!r} to their end"
                )


def result_headings(path: Path) -> dict[str, str]:
    """The results of a notebook, in its order, each with the heading that its cell is under.

    What is bound up to the cell that opens the run, such as imports and parameters, is none.
    """
    headings: dict[str, str] = {}
    before: set[str] = set()
    opened = False
    heading = ""
    for cell in json.loads(path.read_bytes())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown" and source.startswith("## "):
            heading = source.partition("\n")[0].removeprefix("## ")
        if cell["cell_type"] != "code":
            continue
        try:
            _, binds = needs_and_binds(ast.parse(source))
        except SyntaxError:  # of %magic, or not finished yet
            continue
        if opened:
            headings |= dict.fromkeys(binds - before - headings.keys(), heading)
        else:
            before |= binds
            opened = f"{OPENING}(" in source
    return headings


def needs_and_binds(tree: ast.Module) -> tuple[set[str], set[str]]:
    """The names that a cell reads before it binds them, and those that it binds.

    Read from the bytecode, which has both in the order of the lines, whatever the statement. What
    is read in a function that the cell defines, it needs too. Raises SyntaxError.
    """
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    cell = compile(tree, "<cell>", "exec", flags=flags, dont_inherit=True)
    needs: set[str] = set()
    binds: set[str] = set()
    later: set[str] = set()  # called once the whole cell may have run
    for step in dis.get_instructions(cell):
        if isinstance(step.argval, CodeType):
            if step.argval.co_name in COMPREHENSIONS:
                needs |= _globals_of(step.argval) - binds
            else:
                later |= _globals_of(step.argval)
        elif step.opname in LOADS and step.argval not in binds:
            needs.add(step.argval)
        elif step.opname == "STORE_NAME" and not step.argval.startswith("_"):
            binds.add(step.argval)
    return needs | (later - binds), binds


def _globals_of(code: CodeType) -> set[str]:
    """The global names that a function, a class or a comprehension reads, those inside it too."""
    names: set[str] = set()
    for step in dis.get_instructions(code):
        if isinstance(step.argval, CodeType):
            names |= _globals_of(step.argval)
        elif step.opname in LOADS:
            names.add(step.argval)
    return names


def _raising(error: HelpersError) -> ast.Module:
    """A cell that does nothing but raise: its traceback is one line of the user's own cell."""
    kind = type(error)
    return ast.parse(
        f"raise __import__({kind.__module__!r}, fromlist=['']).{kind.__name__}({str(error)!r})"
    )
