"""Cells that are run again, or that failed: a record holds the right numbers, or there is none."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from test_exercises import cells_of, run_cell

from helpers.errors import BadParameter
from helpers.runner.plan import read_plan

PRUNES = {
    "00_start_here": "prune",
    "04_prune_model": "prune",
    "05_zero_shot": "prune",
    "07_your_own_method": "model",
    "08_beyond_the_paper": "prune",
}
pytestmark = pytest.mark.usefixtures("registry")


class Kernel:
    """A notebook whose cells are run one by one, with the parameters of a smoke run that prunes."""

    def __init__(self, notebook: str) -> None:
        runs = [run for run in read_plan("smoke") if run.notebook == notebook]
        self.parameters = next(run for run in runs if run.effective["method"] != "dense").parameters
        self.names: dict[str, Any] = {"__name__": "notebook"}
        found = [cell for cell in cells_of(notebook) if cell["cell_type"] == "code"]
        self.code = {cell["id"]: cell["source"] for cell in found if cell["id"] != "colab-setup"}

    def run(self, first: str, last: str = "record", *, anyway: bool = False) -> None:
        """Run the cells from one to another; `anyway` also after one that fails."""
        order = list(self.code)
        for cell in order[order.index(first) : order.index(last) + 1]:
            with contextlib.suppress(Exception) if anyway else contextlib.nullcontext():
                run_cell(self.code[cell], self.names)
            if cell == "parameters":
                self.names.update(self.parameters)


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the notebooks write their records."""
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path))
    return tmp_path / "scratch" / "records"


@pytest.mark.parametrize("notebook", PRUNES)
def test_after_a_failure_nothing_is_left_to_record(notebook: str, records: Path) -> None:
    kernel = Kernel(notebook)
    kernel.run("parameters")
    (record,) = records.iterdir()
    record.unlink()

    def fail(*_: Any, **__: Any) -> None:
        raise BadParameter("out of patience")

    cell = PRUNES[notebook]
    kernel.names["prune_model"] = fail
    with pytest.raises(BadParameter, match="patience"):
        kernel.run(cell, cell)
    kernel.run(cell, anyway=True)
    assert list(records.iterdir()) == []
