"""The verbs of plans: reproduce, tables, accept and list; `reproduction.schedule` has `run`.

`reproduce` ends with what `reproduction.ending` has: a verdict, the numbers, and what to do next.
Every comparison is in results/<plan>/verdict.txt.
"""

import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from helpers.errors import RunError
from helpers.paths import TABLES_NOTEBOOK, reference_dir, replace_file, results_dir
from reproduction.fingerprint import is_current, is_done
from reproduction.plan import Run, plan_names, read_plan
from reproduction.records import read_record, read_records, write_record
from reproduction.schedule import (
    committed_record,
    format_seconds,
    reference_seconds,
    run_plan,
    write_line,
)

# --- verbs ------------------------------------------------------------------------------------


def reproduce(plan: str, only: str, jobs: str, scheduler: str | None) -> int:
    """Run a plan, write its tables and figures, and compare; 1 if a result is not reproduced."""
    chosen = read_plan(plan, only)
    runs = without_tables(chosen)
    kept = len(current_records(runs))
    began = time.monotonic()
    run_plan(plan, only, jobs, scheduler)
    seconds = time.monotonic() - began
    tables(plan)
    from reproduction.ending import ending  # here: pandas takes a second

    records = [*current_records(runs).values()]
    done = len(current_records(chosen))
    write_line(how_many_done(len(records), done - len(records), kept, seconds))
    verdict = write_verdict(plan, only)
    committed = [*committed_records(runs).values()]
    write_line(f"\n{ending(verdict, plan, records, committed)}")
    return int(verdict.reproduced < verdict.compared)


def how_many_done(measuring: int, only_tables: int, kept: int, seconds: float) -> str:
    """How many runs are done, in a line above the verdict, which counts those that measure.

    only_tables: runs of the notebook that measures nothing; kept: measuring runs that an earlier
    call had done already.
    """
    done = measuring + only_tables
    runs = "1 run is" if done == 1 else f"{done} runs are"
    text = f"{runs} done ({format_seconds(seconds)} in this call)"
    parts = []
    if only_tables:
        parts.append(f"{measuring} measure something, {only_tables} only make tables")
    if kept:
        parts.append(f"{kept} kept from an earlier call")
    return ": ".join([text, "; ".join(parts)]) if parts else text


def tables(plan: str) -> None:
    """Write tables and figures of the records on this machine that are of today's code.

    Raises RunError if there are none.
    """
    folder = results_dir(plan)
    runs = without_tables(read_plan(plan))
    records = current_records(runs)
    others = len(local_records(runs)) - len(records)
    left_out = f", {others} of earlier code left out" if others else ""
    if not records:
        here = os.path.relpath(folder / "records")
        there = reference_dir(plan) / "tables"
        came = ""
        if there.is_dir():
            came = f"; the committed tables are in {os.path.relpath(there)}"
        why = f"no run of plan {plan} has left a record in {here}"
        if others:
            why = f"the records in {here} ({others}) are of earlier code or parameters"
        raise RunError(
            f"no tables are made: {why}. Run make reproduce PLAN={plan} first{came}"
        )
    write_tables_and_figures(records, folder)
    write_line(
        f"tables and figures of {len(records)} of {len(runs)} runs{left_out}: "
        f"{folder}/tables, figures"
    )


def write_verdict(plan: str, only: str = "*") -> Any:
    """Compare the current records on this machine with the committed ones of the same runs.

    Writes every comparison to results/<plan>/verdict.txt, and returns the
    `reproduction.compare.Verdict`.
    """
    from reproduction import compare  # here: pandas takes a second
    from reproduction.ending import how_to_read

    runs = without_tables(read_plan(plan, only))
    records = current_records(runs).values()
    verdict = compare.judge(
        records,
        committed_records(runs).values(),
        read_records(reference_dir(plan) / "records"),
    )
    page = compare.verdict_page(verdict, plan, how_to_read(records))
    replace_file(results_dir(plan) / "verdict.txt", page)
    return verdict


def accept(plan: str, only: str, stale: bool) -> None:
    """Make the current records on this machine the committed reference of their runs.

    Other runs keep the record they have, so that a long plan can be accepted in parts; records of
    earlier code are kept only with `stale`. Tables and figures are made again from all of them. The
    last lines say of which plans records are of earlier code.

    Raises RunError if no record on this machine is current, and for records of earlier code.
    """
    runs = read_plan(plan)
    new = current_records(read_plan(plan, only))
    if not new:
        raise RunError(
            f"nothing is up to date here: run make reproduce PLAN={plan} first"
        )
    records = committed_records(runs) | new
    earlier = records_of_earlier_code(without_tables(runs), records)
    if earlier and not stale:
        raise RunError(
            f"{len(earlier)} of {len(records)} records are of earlier code (make plan lists them): "
            "run them too, or keep them with STALE=1"
        )
    target = reference_dir(plan)
    for folder in ("records", "tables", "figures"):
        shutil.rmtree(target / folder, ignore_errors=True)
    for key, record in records.items():
        write_record(target / "records" / f"{key}.json", record)
    write_tables_and_figures(records, target)
    write_line(
        f"accepted {len(new)} records into {target}, kept {len(records) - len(new)}, "
        f"{len(runs) - len(records)} runs without a record; git diff shows which numbers have moved"
    )
    for each in plan_names():
        if (reference_dir(each) / "records").is_dir():
            write_line(note_earlier_code(each))


def list_runs(plan: str, only: str) -> None:
    """Print the runs of a plan: done, failed or to do, and how long the committed runs took.

    The last lines count the committed records that are of today's code, and say where records are.
    """
    runs = read_plan(plan, only)
    records = committed_records(runs)
    earlier = records_of_earlier_code(runs, records)
    for run in runs:
        state = "to do "
        if is_done(run):
            state = "done  "
        elif run.failed_path.is_file():
            state = "failed"
        line = f"{state}  {run.id}"
        if run.id in records:
            line += f"  {format_seconds(reference_seconds(run))}"
        if run.id in earlier:
            line += "  its committed record is of earlier code"
        write_line(line)
    if records:
        write_line(
            f"{len(records) - len(earlier)} of {len(records)} committed records are of today's "
            "code, or of code that make same found equal to it"
        )
    here, there = (
        os.path.relpath(folder(plan) / "records")
        for folder in (results_dir, reference_dir)
    )
    write_line(f"records: {here} (made here), {there} (committed)")


# --- records ----------------------------------------------------------------------------------


def without_tables(runs: Iterable[Run]) -> list[Run]:
    """Those of the runs that measure something: all but the tables notebook's."""
    return [run for run in runs if run.notebook != TABLES_NOTEBOOK]


def local_records(runs: Iterable[Run]) -> dict[str, Any]:
    """The records of runs on this machine, current or not, by `Run.id`.

    Raises FileError for a bad one.
    """
    return {
        run.id: read_record(run.record_path)
        for run in runs
        if run.record_path.is_file()
    }


def current_records(runs: Iterable[Run]) -> dict[str, Any]:
    """Those of `local_records` that were made with today's code and parameters."""
    return local_records(run for run in runs if is_done(run))


def committed_records(runs: Iterable[Run]) -> dict[str, Any]:
    """The committed records of those runs that still have a record's parameters."""
    return {run.id: record for run in runs if (record := committed_record(run))}


def records_of_earlier_code(runs: Iterable[Run], records: dict[str, Any]) -> list[str]:
    """The ids of those of the runs' records that today's code has not made."""
    return [
        run.id
        for run in runs
        if run.id in records
        and not is_current(records[run.id], run, run.reference_path.parent)
    ]


def note_earlier_code(plan: str) -> str:
    """Keep a note of how many committed records of a plan are of earlier code, and return it.

    The note, earlier.txt next to the records, goes once there are none.
    """
    path = reference_dir(plan) / "earlier.txt"
    runs = without_tables(read_plan(plan))
    records = committed_records(runs)
    current = len(records) - len(records_of_earlier_code(runs, records))
    # those of a run that the plan has no longer, or with other parameters, are of earlier code too
    files = list((path.parent / "records").glob("*.json"))
    total = sum(not each.name.startswith(TABLES_NOTEBOOK) for each in files)
    if current == total:
        path.unlink(missing_ok=True)
        return f"the records of {plan} are all of today's code"
    line = f"{total - current} of {total} records of {plan} are of earlier code"
    replace_file(path, f"{line}\n")
    return f"{line}: run make same, or make them again"


def write_tables_and_figures(records: dict[str, Any], folder: Path) -> None:
    """Write the tables and figures of records. No model is loaded."""
    from reproduction.claims_page import write_claims  # here: pandas takes a second
    from reproduction.figures import write_figures
    from reproduction.tables import write_tables

    # in the order of their files, as `read_records` has them: a sum's last digit depends on it
    ordered = [records[key] for key in sorted(records, key=lambda name: f"{name}.json")]
    write_tables(ordered, folder / "tables")
    write_claims(ordered, folder / "tables")
    write_figures(ordered, folder / "figures")
