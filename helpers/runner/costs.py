"""What the runs of a plan take on a machine, and what is missing there: `make plan`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from helpers.errors import HelpersError
from helpers.machine import downloads, estimate, gigabytes, machine_named, missing, this_machine
from helpers.runner.plan import Run, count_runs

ROW = "{:<53}  {:<35}  {:>7}  {:>7}  {:>8}"


def plan_lines(runs: Iterable[Run], machine_name: str | None = None) -> list[str]:
    """The costs of a plan: an aligned line for each run, totals, and what is missing.

    Without a name the machine is this one. Disk is counted once for each model and text. Runs of
    notebooks that prune no model, and of models whose shape is not known, have a dash.

    Raises BadParameter for an unknown machine.
    """
    machine = machine_named(machine_name) if machine_name else this_machine()
    rows = [ROW.format("run", "model", "memory", "disk", "hours")]
    known, disk, lacking = [], {}, Counter()
    for run in runs:
        asked = run.effective
        try:
            needs, lacks = estimate(asked, machine), missing(asked, machine)
        except HelpersError:
            rows.append(ROW.format(run.id, str(asked.get("model", "–")), "–", "–", "–"))
            continue
        known.append(needs)
        disk |= downloads(asked)
        lacking.update(lacks)
        sizes = [gigabytes(size) for size in (needs.memory_bytes, needs.disk_bytes)]
        rows.append(ROW.format(run.id, asked["model"], *sizes, f"{needs.seconds / 3600:.2f} h"))
    hours = sum(needs.seconds for needs in known) / 3600
    memory = max((needs.memory_bytes for needs in known), default=0)
    unknown = len(rows) - 1 - len(known)
    return [
        f"On {machine.name} ({machine.note}); starting and downloading not counted.",
        "",
        *rows,
        "",
        f"total: {count_runs(len(known))}, {hours:.2f} hours one after the other, "
        f"{gigabytes(sum(disk.values()))} of disk, at most {gigabytes(memory)} of memory",
        *([f"not estimated: {count_runs(unknown)}"] if unknown else []),
        "",
        "missing:" if lacking else "missing: nothing",
        *(f"  {count_runs(count)}: {text}" for text, count in lacking.items()),
    ]
