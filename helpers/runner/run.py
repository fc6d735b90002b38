"""The verbs of the plans: run one, write its tables and figures, compare and accept them.

    python -m helpers reproduce --plan laptop [--jobs 2] [--only '04*']
    python -m helpers run | tables | accept | list --plan laptop

`reproduce` ends with the numbers, the verdict on them in one line and what to do next; every
comparison is in results/<plan>/verdict.txt.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

from helpers import (
    report,
)  # its names are loaded on use: pandas and matplotlib take seconds
from helpers.errors import RunError
from helpers.paths import TABLES_NOTEBOOK, reference_dir, replace_file, results_dir
from helpers.runner.fingerprint import is_current, is_done
from helpers.runner.plan import Run, plan_names, read_plan
from helpers.runner.schedule import format_seconds, reference_seconds, run_plan, say

Records = dict[str, dict[str, Any]]  # by `Run.id`


def measuring(plan: str, only: str | None = None) -> list[Run]:
    """The runs of a plan without the tables notebook's, which measures nothing of its own."""
    return [run for run in read_plan(plan, only) if run.notebook != TABLES_NOTEBOOK]


def records_here(runs: list[Run]) -> Records:
    """The records of runs on this machine, of whatever code; FileError for a bad one."""
    return {
        run.id: report.read_record(run.record_path)
        for run in runs
        if run.record_path.is_file()
    }


def up_to_date(runs: list[Run]) -> Records:
    """Those of `records_here` that were made by today's code and parameters."""
    return records_here([run for run in runs if is_done(run)])


def committed(runs: list[Run]) -> Records:
    """The committed records of those runs that still have a record's parameters."""
    records = {}
    for run in runs:
        here = {"notebook": run.notebook, "parameters": run.effective}
        there = (
            report.read_record(run.reference_path)
            if run.reference_path.is_file()
            else None
        )
        if there and report.same_run(here, there, run.defaults):
            records[run.id] = there
    return records


def write_tables_and_figures(records: Records, folder: Path) -> None:
    """Write the tables and figures of records. No model is loaded."""
    # in the order of their files, as `read_records` has them: a sum's last digit depends on it
    ordered = [records[key] for key in sorted(records, key="{}.json".format)]
    for write in (report.write_tables, report.write_claims):
        write(ordered, folder / "tables")
    report.write_figures(ordered, folder / "figures")


def reproduce(options: argparse.Namespace) -> int:
    """Run the plan; unless only that is wanted, write its products and compare."""
    plan, only = options.plan, options.only
    failures = run_plan(plan, jobs=options.jobs, only=only, scheduler=options.scheduler)
    for run, error in failures:
        say(f"{run.id}: {error} [{run.failed_path}]", error=True)
    if failures:
        raise RunError(
            f"{len(failures)} failed: the same command repeats what is missing"
        )
    if options.verb == "run":
        return 0
    write_products(options)
    say(f"\n{report.perplexity_markdown(records_here(measuring(plan, only)).values())}")
    status = give_verdict(options)
    say(
        "next: make book (all of this as a site), make lab (the notebooks, to change and to try)"
    )
    return status


def write_products(options: argparse.Namespace) -> int:
    """Write tables and figures from the records of a plan."""
    plan, folder, runs = (
        options.plan,
        results_dir(options.plan),
        read_plan(options.plan),
    )
    records = records_here(runs)
    if not records:
        raise RunError(
            f"no records in {folder}/records: run make reproduce PLAN={plan} first"
        )
    write_tables_and_figures(records, folder)
    say(
        f"tables and figures of {len(records)} of {len(runs)} runs: {folder}/tables, figures"
    )
    return 0


def verdict_here(plan: str, only: str | None = None) -> Any:
    """The `helpers.report.verdict.Verdict` on the records here that are up to date."""
    runs = measuring(plan, only)
    every = report.read_records(reference_dir(plan) / "records")
    return report.judge(up_to_date(runs).values(), committed(runs).values(), every)


def give_verdict(options: argparse.Namespace) -> int:
    """Compare the records here with the committed ones of the same runs; 1 if one is apart.

    Says the verdict and what is apart; every comparison is in results/<plan>/verdict.txt.
    """
    verdict = verdict_here(options.plan, options.only)
    summary = report.verdict_line(verdict)
    apart = [
        item
        for item in verdict.comparisons
        if not item.within and item.what != "record"
    ]
    if apart:
        say("\n".join(report.comparison_lines(apart[:12])))
    lines = [summary, "", *report.comparison_lines(verdict.comparisons), ""]
    path = replace_file(results_dir(options.plan) / "verdict.txt", "\n".join(lines))
    say(f"{summary}\nevery comparison: {path}")
    return int(verdict.reproduced < verdict.compared)


def accept(options: argparse.Namespace) -> int:
    """Make the records that are up to date here the committed reference of their runs.

    Runs that were not done here keep the record they have, so that a long plan can be accepted in
    parts; one of earlier code is kept only where --stale allows it. Tables and figures are made
    again from all of them. The last lines say which plans stand.

    Raises RunError where nothing is up to date here, and for records of earlier code.
    """
    runs, target = read_plan(options.plan), reference_dir(options.plan)
    new = up_to_date(read_plan(options.plan, options.only))
    if not new:
        raise RunError(
            f"nothing is up to date here: run make reproduce PLAN={options.plan} first"
        )
    old = committed(runs)
    records = old | new
    if (earlier := of_earlier_code(options.plan, records)) and not options.stale:
        raise RunError(
            f"{len(earlier)} of {len(records)} records are of earlier code (make plan lists them): "
            "run them too, or keep them with STALE=1"
        )
    for folder in ("records", "tables", "figures"):
        shutil.rmtree(target / folder, ignore_errors=True)
    for key, record in records.items():
        report.write_record(target / "records" / f"{key}.json", record)
    write_tables_and_figures(records, target)
    others = f"kept {len(records) - len(new)}, {len(runs) - len(records)} runs without a record"
    say(f"accepted {len(new)} records into {target}, {others}")
    both = [(new[key], old[key]) for key in sorted(new.keys() & old.keys())]
    moved = [line for pair in both for line in report.printed_differences(*pair)]
    say(
        f"printed digits that moved in {len(both)} runs: {'; '.join(moved[:3]) or 'none'}"
    )
    for plan in plan_names():
        if (reference_dir(plan) / "records").is_dir():
            say(standing(plan, moved[:3]))
    return 0


def of_earlier_code(plan: str, records: Records) -> list[dict[str, Any]]:
    """Those of a plan's records that today's code has not made, the oldest first."""
    made = [(records[run.id], run) for run in measuring(plan) if run.id in records]
    earlier = [
        record
        for record, run in made
        if not is_current(record, run, run.reference_path.parent)
    ]
    return sorted(earlier, key=lambda record: record["created"])


def standing(plan: str, moved: list[str]) -> str:
    """Whether the committed records of a plan stand, in a line.

    Those of earlier code do until a printed digit has moved, of `laptop` as a rule. How many they
    are, and what has moved, `moved` and before, is kept beside them until they are made again.
    """
    path, records = reference_dir(plan) / "earlier.txt", committed(measuring(plan))
    earlier = of_earlier_code(plan, records)
    if not earlier:
        path.unlink(missing_ok=True)
        return f"the records of {plan} are all of today's code"
    since = earlier[0]["versions"].get("pruning-reproduction", "0.9.0 or before")
    line = f"{len(earlier)} of {len(records)} records of {plan} are of earlier code, since {since}"
    before = path.read_text(encoding="utf-8").splitlines()[1:] if path.is_file() else []
    replace_file(path, "\n".join([line, *before, *moved, ""]))
    return f"{line}: {'digits have moved, make them again' if before or moved else 'they stand'}"


def list_runs(options: argparse.Namespace) -> int:
    """Say what a plan holds: done, failed or to do, and how long the committed runs took.

    The last line counts the committed records that are current.
    """
    runs = read_plan(options.plan, options.only)
    records = committed(runs)
    current = [
        run.id
        for run in runs
        if run.id in records
        and is_current(records[run.id], run, run.reference_path.parent)
    ]
    for run in runs:
        state = (
            "done"
            if is_done(run)
            else "failed"
            if run.failed_path.is_file()
            else "to do"
        )
        time = (
            f"  {format_seconds(reference_seconds(run))}" if run.id in records else ""
        )
        earlier = (
            "  its committed record is of earlier code" if run.id in records else ""
        )
        say(f"{state:6}  {run.id}{time}{'' if run.id in current else earlier}")
    if records:
        say(f"{len(current)} of {len(records)} committed records are of today's code")
    return 0


COMMANDS = {
    "reproduce": reproduce,
    "run": reproduce,
    "tables": write_products,
    "accept": accept,
    "list": list_runs,
}
