"""The lines of `make plan`: what the runs of a plan take on a machine, and what is missing."""

from types import SimpleNamespace
from typing import Any

import pytest

from helpers.errors import BadParameter
from helpers.runner import costs
from helpers.runner.plan import Run, count_runs, read_plan

MACHINE = SimpleNamespace(name="t4", note="not measured")


def estimate(asked: dict[str, Any], machine: object) -> SimpleNamespace:
    """Made-up costs: 4 GB and half an hour a run, 13.5 GB of disk a model."""
    if asked["model"] == "other":
        raise BadParameter("no shape")
    return SimpleNamespace(memory_bytes=4 * 10**9, disk_bytes=int(13.5e9), seconds=1800.0)


def test_the_lines_of_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "estimate", estimate)
    monkeypatch.setattr(costs, "machine_named", lambda name: MACHINE)
    monkeypatch.setattr(costs, "downloads", lambda asked: {asked["model"]: int(13.5e9)})
    monkeypatch.setattr(costs, "missing", lambda asked, _: ["gated"] * (asked["model"] == "b"))
    models = {"one": "a", "two": "b", "three": "b", "x": "other"}
    runs = [Run("p", "04", name, {"model": model}, {}) for name, model in models.items()]
    lines = costs.plan_lines(runs, "t4")
    assert lines[0].startswith("On t4 (not measured)")
    table = [line.split() for line in lines[2:7]]
    assert table[0] == ["run", "model", "memory", "disk", "hours"]
    assert table[1] == ["04--one", "a", "4.0", "GB", "14", "GB", "0.50", "h"]
    assert table[4] == ["04--x", "other", "–", "–", "–"]
    assert (
        "total: 3 runs, 1.50 hours one after the other, 27 GB of disk, at most 4.0 GB of memory"
        in lines
    ), "disk is counted once a model"
    assert lines[-4:] == ["not estimated: 1 run", "", "missing:", "  2 runs: gated"]
    assert costs.plan_lines(runs[:1], "t4")[-1] == "missing: nothing"


@pytest.mark.parametrize(
    ("plan", "machine", "others"),
    [("t4", "t4", 1), ("paper", "a100-80g", 1), ("original", "t4", 4)],
)
def test_every_run_that_prunes_and_scores_is_estimated(
    plan: str, machine: str, others: int
) -> None:
    runs = read_plan(plan)
    lines = costs.plan_lines(runs, machine)
    assert f"total: {len(runs) - others} runs" in "\n".join(lines)
    assert f"not estimated: {count_runs(others)}" in lines, "the tables, and notebooks 01 to 03"
    assert len({len(line) for line in lines[2 : 3 + len(runs)]}) == 1, "columns are aligned"
