"""What the runs of a plan take on a machine, and what is missing there: `make plan`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from helpers.errors import HelpersError
from helpers.machine import (
    downloads,
    estimate,
    gigabytes,
    machine_named,
    missing,
    this_machine,
)
from helpers.runner.plan import Run, count_runs

HEAD = ("run", "model", "memory", "disk", "hours")


def plan_lines(runs: Iterable[Run], machine_name: str | None = None) -> list[str]:
    """The costs of a plan: an aligned line for each run, totals, and what is missing.

    Without a name the machine is this one. Disk is counted once for each model and text. Runs of
    notebooks that prune no model, and of models whose shape is not known, have a dash.

    Raises BadParameter for an unknown machine.
    """
    machine = machine_named(machine_name) if machine_name else this_machine()
    rows, unknown, seconds, memory = [HEAD], 0, 0.0, 0
    disk: dict[str, int] = {}
    lacking: Counter[str] = Counter()
    for run in runs:
        asked = run.effective
        try:
            needs, lacks = estimate(asked, machine), missing(asked, machine)
        except HelpersError:
            rows.append((run.id, str(asked.get("model", "–")), "–", "–", "–"))
            unknown += 1
            continue
        disk |= downloads(asked)
        lacking.update(lacks)
        seconds += needs.seconds
        memory = max(memory, needs.memory_bytes)
        sizes = [gigabytes(size) for size in (needs.memory_bytes, needs.disk_bytes)]
        rows.append((run.id, asked["model"], *sizes, f"{needs.seconds / 3600:.2f} h"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = [
        "  ".join(
            text.ljust(width) if column < 2 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    total = (
        f"total: {count_runs(len(rows) - 1 - unknown)}, {seconds / 3600:.2f} hours one after the "
        f"other, {gigabytes(sum(disk.values()))} of disk, at most {gigabytes(memory)} of memory"
    )
    return [
        f"On {machine.name} ({machine.note}); starting and downloading not counted.",
        "",
        *table,
        "",
        total,
        *([f"not estimated: {count_runs(unknown)}"] if unknown else []),
        "",
        "missing:" if lacking else "missing: nothing",
        *(f"  {count_runs(count)}: {text}" for text, count in lacking.items()),
    ]
