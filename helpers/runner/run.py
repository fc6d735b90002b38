"""The command line: run a plan, write its tables and figures, compare and accept them.

    python -m helpers.runner [reproduce] --plan laptop [--jobs 2] [--only '04*']
    python -m helpers.runner run | tables | verdict | accept | assets | list --plan laptop

`reproduce` ends with the numbers, the verdict on them in one line and what to do next; every
comparison is in results/<plan>/verdict.txt, with --only in verdict-part.txt.
Run files are checked by `helpers.runner.plan` before anything starts, and each run is a process of
its own (`helpers.runner.process`), a few side by side (`helpers.runner.schedule`).
"""

from __future__ import annotations

import argparse
import shutil
import signal
from pathlib import Path
from typing import Any

from helpers import report  # its names are loaded on use: pandas and matplotlib take seconds
from helpers.errors import HelpersError, RunError
from helpers.paths import TABLES_NOTEBOOK, reference_dir, replace_file, results_dir
from helpers.report import read_record, read_records, write_record
from helpers.runner.fingerprint import is_done
from helpers.runner.plan import Run, assets_needed, count_runs, read_plan
from helpers.runner.process import show_path
from helpers.runner.schedule import format_seconds, is_running, reference_seconds, run_plan, say

# the committed records of `full` stand while `laptop` equals its own: see `accept`
FAST_PLAN, LONG_PLAN = "laptop", "full"
MOVED_SHOWN = 3
APART_SHOWN = 12
NEXT = "next: make book (all of this as a site), make lab (the notebooks, to change and to try)"
Records = dict[str, dict[str, Any]]  # by `Run.id`


def records_here(runs: list[Run]) -> Records:
    """The records of runs on this machine, of whatever code; FileError for a bad one."""
    return {run.id: read_record(run.record_path) for run in runs if run.record_path.is_file()}


def up_to_date(runs: list[Run]) -> Records:
    """Those of `records_here` that were made by today's code and parameters."""
    found = records_here(runs)
    return {run.id: found[run.id] for run in runs if is_done(run)}


def committed(runs: list[Run]) -> Records:
    """The committed records of those runs that still have a record's parameters."""
    found = {}
    for run in runs:
        asked = {"notebook": run.notebook, "parameters": run.effective}
        if run.reference_path.is_file() and report.same_run(
            asked, record := read_record(run.reference_path), run.defaults
        ):
            found[run.id] = record
    return found


def write_tables_and_figures(records: Records, folder: Path) -> None:
    """Write the tables and figures of records. No model is loaded."""
    # in the order of their files, as `read_records` has them: a sum's last digit depends on it
    ordered = [records[key] for key in sorted(records, key="{}.json".format)]
    for write in (report.write_tables, report.write_published, report.write_claims):
        write(ordered, folder / "tables")
    report.write_figures(ordered, folder / "figures")


def reproduce(options: argparse.Namespace) -> int:
    """Run the plan; unless only that is asked, write its products and compare; failures last."""
    plan = options.plan
    failures = run_plan(plan, jobs=options.jobs, only=options.only, scheduler=options.scheduler)
    status = 0
    try:
        # where every run failed there is nothing to make tables of, and that is not the news
        if options.command == "reproduce" and (not failures or records_here(read_plan(plan))):
            write_products(options)
            chosen = records_here(read_plan(plan, options.only))
            measured = [r for r in chosen.values() if r["notebook"] != TABLES_NOTEBOOK]
            say(f"\n{report.numbers_text(measured)}")
            status = give_verdict(options)
            if not failures:
                say(NEXT)
    except HelpersError as error:
        say(str(error), error=True)
        status = 1
    if failures:
        say(f"{count_runs(len(failures))} failed; run again to repeat:", error=True)
    for failed, error in failures:
        place = f" [{show_path(failed.failed_path)}]" if failed.failed_path.is_file() else ""
        say(f"  {failed.notebook} {failed.name}: {error}{place}", error=True)
    return 1 if failures else status


def write_products(options: argparse.Namespace) -> int:
    """Write tables and figures from the records of a plan."""
    folder, runs = results_dir(options.plan), read_plan(options.plan)
    records = records_here(runs)
    if not records:
        raise RunError(
            f"no records in {show_path(folder / 'records')}: "
            f"run make reproduce PLAN={options.plan} first"
        )
    write_tables_and_figures(records, folder)
    if is_running(options.plan):
        say(under_way(options.plan))
    say(f"tables and figures of {len(records)} records: {show_path(folder)}/tables, figures")
    if missing := len(runs) - len(records):
        say(f"{count_runs(missing)} of the plan without a record here")
    return 0


def under_way(plan: str) -> str:
    """What to say of results that a runner is adding to."""
    return f"note: a run of plan {plan} is under way, and what is shown is what it has done so far"


def verdict_here(plan: str, only: str | None = None) -> Any:
    """The `helpers.report.verdict.Verdict` on the records here that are up to date."""
    # the tables notebook measures nothing of its own
    runs = [run for run in read_plan(plan, only) if run.notebook != TABLES_NOTEBOOK]
    return report.judge(
        up_to_date(runs).values(),
        committed(runs).values(),
        read_records(reference_dir(plan) / "records"),
        {run.notebook: run.defaults for run in runs},
    )


def give_verdict(options: argparse.Namespace) -> int:
    """Compare the records here with the committed ones of the same runs; 1 if one is apart.

    Says the verdict and what is apart, and writes every comparison to results/<plan>/verdict.txt;
    that on a part of the plan to verdict-part.txt.
    """
    found = verdict_here(options.plan, options.only)
    text = [report.summary(found), *report.notes(found)]
    if found.compared > found.missing:
        path = results_dir(options.plan) / f"verdict{'-part' if options.only else ''}.txt"
        lines = report.to_lines(found.comparisons)
        replace_file(path, "\n".join([*text, "", *lines, ""]))
        apart = [item for item in found.comparisons if not item.within and item.what != "record"]
        for line in report.to_lines(apart[:APART_SHOWN]) if apart else ():
            say(line)
        if len(apart) > APART_SHOWN:
            say(f"and {len(apart) - APART_SHOWN} more")
        text.append(f"every comparison: {show_path(path)}")
    for line in text:
        say(line)
    return int(found.reproduced < found.compared)


def accept(options: argparse.Namespace) -> int:
    """Make the records that are up to date here the committed reference of their runs.

    Runs that were not done here keep the record they have, so that a long plan can be accepted in
    parts. Tables and figures are made again from all of them.

    The committed records of `full` need not be made again for a change of the core that changes no
    number: they stand as long as `laptop`, run with today's code, equals its own committed records
    to the printed digits. For `laptop` the last lines say which case it is.
    """
    every_run, fresh = read_plan(options.plan), up_to_date(read_plan(options.plan, options.only))
    if not fresh:
        raise RunError(
            f"no run of plan {options.plan} is up to date here: "
            f"run make reproduce PLAN={options.plan} first"
        )
    before = committed(every_run)
    target = reference_dir(options.plan)
    new = target.with_name(f".{target.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    try:
        for key, record in (before | fresh).items():
            write_record(new / "records" / f"{key}.json", record)
        write_tables_and_figures(before | fresh, new)
        shutil.rmtree(target, ignore_errors=True)
        new.rename(target)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    unclean = sum((record["git"] or {"dirty": True})["dirty"] for record in fresh.values())
    if unclean:
        say(f"note: {unclean} of {len(fresh)} records come from code that was not committed")
    kept = len(before.keys() - fresh.keys())
    say(f"accepted {len(fresh)} records into {show_path(target)}, kept {kept} of before")
    if without := len(every_run) - len(before | fresh):
        say(f"{count_runs(without)} of the plan without a record yet")
    if options.plan == FAST_PLAN:
        measuring = [run.id for run in every_run if run.notebook != TABLES_NOTEBOOK]
        say(_whether_full_stands(measuring, fresh, before))
    return 0


def _whether_full_stands(measuring: list[str], fresh: Records, before: Records) -> str:
    """Whether new records of `laptop` let the committed records of `full` stand."""
    compared = [key for key in measuring if key in fresh and key in before]
    moved = []
    for key in compared:
        moved += report.equal_to_printed_digits(fresh[key], before[key])
    if moved:
        more = [f"and {len(moved) - MOVED_SHOWN} more"] if len(moved) > MOVED_SHOWN else []
        again = f"{LONG_PLAN} must be made again (make reproduce PLAN={LONG_PLAN})"
        return f"printed digits moved, so {again}:\n  {'; '.join(moved[:MOVED_SHOWN] + more)}"
    equal = f"{count_runs(len(compared))} equal to the printed digits"
    if left := len(measuring) - len(compared):
        return f"{equal}, {left} not compared: whether the records of {LONG_PLAN} stand is open"
    return f"all {equal}: the records of {LONG_PLAN} stand"


def fetch_assets(options: argparse.Namespace) -> int:
    """Download what the runs of a plan read, and nothing else."""
    names = assets_needed(read_plan(options.plan, options.only))
    if not names:
        return 0
    from helpers.data import assets  # here: it loads packages for model files

    return assets.main(names)


def list_runs(options: argparse.Namespace) -> int:
    """Say what a plan holds: done, under way, failed or to do, and how long committed runs took.

    For a plan that was never run, here or for the reference, or with --machine: what each run
    would need, and what is missing here; nothing is downloaded for that.
    """
    runs, running = read_plan(options.plan, options.only), is_running(options.plan)
    rows = []
    for run in runs:
        state = "failed" if run.failed_path.is_file() else "to do"
        state = "runs" if running and run.job_path.exists() else state
        rows.append((run, "done" if is_done(run) else state, reference_seconds(run)))
    if options.machine or all(row[1:] == ("to do", None) for row in rows):
        from helpers.runner import costs  # here: it may load torch, which takes seconds

        lines = costs.plan_lines(runs, options.machine)
        done = sum(state == "done" for _, state, _ in rows)
        say("\n".join([f"plan {options.plan}: {done} of {len(runs)} runs are done", *lines]))
        return 0
    for run, state, seconds in rows:
        cost = "" if seconds is None else f"  {format_seconds(seconds)}"
        say(f"{state:6}  {run.notebook}  {run.name}{cost}")
    return 0


COMMANDS = {
    "reproduce": reproduce,
    "run": reproduce,
    "tables": write_products,
    "verdict": give_verdict,
    "accept": accept,
    "assets": fetch_assets,
    "list": list_runs,
}


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says and return the exit code; errors are one line each."""
    parser = argparse.ArgumentParser(prog="python -m helpers.runner", description="Run a plan.")
    parser.add_argument("command", nargs="?", default="reproduce", choices=COMMANDS)
    parser.add_argument("--plan", default="laptop", help="a folder of runs/ (default: laptop)")
    parser.add_argument("--jobs", default="auto", help='runs side by side, or "auto"')
    parser.add_argument("--scheduler", metavar="ADDRESS", help="run on this Dask cluster instead")
    parser.add_argument("--only", metavar="GLOB", help="runs whose notebook or name matches")
    parser.add_argument("--machine", help="for list: what it would take on t4, a100-80g …")
    options = parser.parse_args(arguments)
    # SIGTERM does what Ctrl-C does, so that kernels are stopped too
    handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return COMMANDS[options.command](options)
    except HelpersError as error:
        say(str(error), error=True)
    except OSError as error:
        say(f"{error.strerror or type(error).__name__}: {error.filename or error}", error=True)
    except KeyboardInterrupt:
        say("interrupted; the same command goes on with the runs that are missing", error=True)
        return 130  # the shell's code for Ctrl-C
    finally:
        signal.signal(signal.SIGTERM, handler)
    return 1
