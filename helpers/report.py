"""The report: one page, results/report.html, on what a plan reproduced.

It is made of the records of this machine's runs where there are any, else of the committed ones,
and says which. Executed notebooks are converted beside it, so that a number can be followed to the
cells that made it. No model is loaded.
"""

from __future__ import annotations

import datetime
import glob
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from helpers import plan as plans
from helpers.child import format_seconds, show_path
from helpers.doctor import running_plans
from helpers.errors import RunError
from helpers.notebook_pages import convert_notebooks
from helpers.pages import (
    asset,
    cell_of,
    command,
    contents,
    document,
    escape,
    facts,
    markdown,
    prose,
    slug,
)
from helpers.paths import reference_dir, replace_file, results_dir
from helpers.plan import Run
from helpers.records import read_record, read_records
from helpers.report_parts import (
    PICTURE,
    Checked,
    beside_part,
    by_model,
    checked_claims,
    claims_part,
    model_name,
    place_of,
    provenance_part,
    published_part,
    seconds_of,
    tally,
    topic_parts,
    verdict_part,
    versions_of,
)
from helpers.tables import PRUNE_NOTEBOOK, perplexity_table, setting
from helpers.verdict import Verdict, judge, same_run

Record = Mapping[str, Any]

PAPER = "https://arxiv.org/abs/2401.02938"
ORIGIN = "Where it comes from"
TITLE = "Pruning a language model, and repairing what is left"
DONE, STALE, FAILED, MISSING = "up to date", "made by other code", "failed", "not run"
RUNNING = "under way"
# the packages of a record that a reader asks for first
MAIN_VERSIONS = ("python", "torch", "transformers")


@dataclass(frozen=True)
class Material:
    """What a page is made of: the runs of a plan, the records shown, and what became of each."""

    plan: str
    runs: list[Run]
    records: list[Record]
    own: bool  # of this machine, else committed
    states: dict[str, str]  # by the run's id
    verdict: Verdict | None = None
    committed: Sequence[Record] = ()  # of runs that were not made on this machine

    def record_of(self, run: Run) -> Record | None:
        """The record shown of a run."""
        return next((record for record in self.records if plans.record_id(record) == run.id), None)


def write_report(plan: str, say: Callable[[str], None]) -> Path:
    """Write report.html into the results folder, executed notebooks beside it; return its path.

    `say` is told each notebook that is converted. A notebook that cannot be converted is named on
    the page. Raises RunError for an unknown plan and where there are no records, RecordError for
    one that cannot be used and for a folder that cannot be written.
    """
    material = gather(plan)
    problems = convert_notebooks(plan, say)
    return replace_file(results_dir(plan).parent / "report.html", page(material, problems))


def gather(plan: str) -> Material:
    """The records to show and what became of the runs: see the module's docstring for which.

    Raises what `write_report` raises.
    """
    runs = plans.read_plan(plan)
    references = read_records(reference_dir(plan) / "records")
    there = [run for run in runs if run.record_path.is_file()]
    under_way = plans.under_way(runs, running_plans())
    if there:
        others = read_records(reference_dir("full") / "records")
        states = {run.id: _state(run, under_way) for run in runs}
        records = [read_record(run.record_path) for run in there]
        tried = [run for run in runs if states[run.id] not in (MISSING, RUNNING)]
        verdict = judge(tried, references, others)
        left = {run.id for run in runs} - {run.id for run in there}
        committed = [record for record in references if plans.record_id(record) in left]
        return Material(plan, runs, records, True, states, verdict, committed)
    if not references:
        raise RunError(
            f"plan {plan} has no records, neither in {results_dir(plan) / 'records'} nor "
            f"committed: run make reproduce PLAN={plan} first"
        )
    return Material(plan, runs, references, False, _committed_states(runs, references, under_way))


def _state(run: Run, under_way: Collection[str]) -> str:
    """What became of a run on this machine; `under_way` are ids of runs."""
    if plans.is_done(run):
        return DONE
    if run.id in under_way:
        return RUNNING
    if run.failed_path.is_file():
        return FAILED
    return STALE if run.record_path.is_file() else MISSING


def _committed_states(
    runs: Iterable[Run], references: Iterable[Record], under_way: Collection[str]
) -> dict[str, str]:
    """What there is of each run among the committed records; `under_way` are ids of runs."""
    committed = {plans.record_id(record): record for record in references}
    states = {}
    for run in runs:
        record = committed.get(run.id)
        asked = {"notebook": run.notebook, "parameters": run.effective}
        if record is None or not same_run(asked, record, run.defaults):
            states[run.id] = _state(run, under_way)
        else:
            fits = record.get("fingerprint") == plans.fingerprint(run)
            states[run.id] = DONE if fits else STALE
    return states


# ------------------------------------------------------------------ the page


def page(material: Material, problems: Sequence[str] = ()) -> str:
    """The whole page. `problems` are lines on notebooks that could not be converted."""
    topics = topic_parts(material.records)
    parts = {PICTURE: topics.pop(PICTURE)} if PICTURE in topics else {}
    beside = beside_part(material.records, material.committed)
    if beside:
        parts["Beside the committed runs"] = beside
    if material.verdict is not None:
        parts["Reproduced here?"] = verdict_part(material.verdict)
    checked = checked_claims(material.records)
    parts["The paper's claims"] = claims_part(checked)
    parts |= topics
    parts["Published figures"] = published_part(material.records)
    parts[ORIGIN] = provenance_part(material.records)
    parts["Run a cell again"] = _runs_part(material)
    body = "\n".join(
        f'<section id="{slug(title)}" aria-labelledby="{slug(title)}-title">\n'
        f'<h2 id="{slug(title)}-title">{escape(title)}</h2>\n{part}</section>\n'
        for title, part in parts.items()
    )
    entries = [(slug(title), title) for title in parts]
    return document(
        f"{TITLE}: plan {material.plan}",
        f"{_header(material, checked, problems)}\n"
        f'<div class="layout">\n{contents(entries)}<main id="main">\n{body}</main>\n</div>\n'
        f"{_footer(material)}",
        script=asset("report.js"),
    )


def _header(material: Material, checked: Checked, problems: Sequence[str]) -> str:
    """What this is, what came out, whose records these are, and whether something is missing."""
    outcome = " ".join([*_headlines(material.records), tally(checked)])
    return (
        '<header class="top">\n'
        f'<p class="eyebrow">Reproduction report · plan {escape(material.plan)}</p>\n'
        f"<h1>{TITLE}</h1>\n"
        f'<p class="lead">{prose(outcome)}</p>\n'
        f"<p>A reproduction of <cite>Fast and Effective Weight Update for Pruned Large Language "
        f'Models</cite> (Boža, TMLR 2024, <a href="{PAPER}">arXiv 2401.02938</a>): prune a model '
        "layer by layer, and refit the surviving weights by ADMM under a gradually growing mask."
        f"</p>\n{_whose(material)}{_gaps(material)}{_broken(problems)}"
        f"{facts(_facts(material))}</header>"
    )


def _headlines(records: Sequence[Record]) -> list[str]:
    """One sentence for each model on which method has the lowest perplexity."""
    found = []
    for name, runs in by_model(records).items():
        if any(run["notebook"] == PRUNE_NOTEBOOK for run in runs):
            found.append(_headline(perplexity_table(runs), model_name(name)))
    return found or ["No perplexity was measured."]


def _headline(frame: pd.DataFrame, model: str) -> str:
    """Which method has the lowest perplexity, in how many columns, and how low at one of them."""
    pruned = frame.drop(index="dense", errors="ignore").dropna(how="all")
    if pruned.empty:
        return f"{model} was measured without pruning only."
    if len(pruned) == 1:
        (only,), column = pruned.index, pruned.columns[0]
        value = cell_of(frame[column][only]).html
        return f"{only} takes {model} to a perplexity of {value} at {column}."
    winners = Counter(pruned[column].dropna().idxmin() for column in pruned.columns)
    best, wins = winners.most_common(1)[0]
    won = [column for column in pruned.columns if pruned[column].dropna().idxmin() == best]
    column = "60 %" if "60 %" in won else won[0]
    shown = {name: cell_of(value).html for name, value in frame[column].dropna().items()}
    rest = pruned[column].drop(index=best).dropna()
    next_best = f", next {rest.idxmin()} with {shown[rest.idxmin()]}" if len(rest) else ""
    dense = f"; the dense model has {shown['dense']}" if "dense" in shown else ""
    return (
        f"Of {len(pruned)} ways to prune {model}, {best} has the lowest perplexity in {wins} of "
        f"{len(pruned.columns)} columns: {shown[best]} at {column}{next_best}{dense}."
    )


def _whose(material: Material) -> str:
    """Whose records are shown."""
    count = len(material.records)
    if material.own:
        text = (
            f"<strong>Made on this machine.</strong> All figures are of the {count} records in "
            f"<code>{escape(_folder_name(material))}</code>."
        )
        if material.verdict and material.verdict.compared:
            text += (
                f" {material.verdict.reproduced} of {material.verdict.compared} runs agree with "
                'the committed ones (<a href="#reproduced-here">how closely</a>).'
            )
    else:
        text = (
            "<strong>Not made on this machine.</strong> No run of this plan has a record here, so "
            f"all figures are of the {count} committed records in "
            f"<code>{escape(_folder_name(material))}</code>. "
            f"<code>make reproduce PLAN={escape(material.plan)}</code> makes your own."
        )
    return f'<div class="notice"><p>{text}</p></div>\n'


def _folder_name(material: Material) -> str:
    """Where the records lie, relative to the project where that is possible."""
    folder = (results_dir if material.own else reference_dir)(material.plan) / "records"
    return show_path(folder)


def _gaps(material: Material) -> str:
    """Which runs are missing, failed or of other code; nothing if all are up to date."""
    groups: dict[str, list[str]] = defaultdict(list)
    for run in material.runs:
        groups[material.states[run.id]].append(f"{run.notebook}/{run.name}")
    done = len(groups.pop(DONE, ()))
    if not groups:
        return ""
    items = []
    for state in (RUNNING, FAILED, MISSING, STALE):
        names = groups.get(state, [])
        if names:
            which = "all of them" if len(names) == len(material.runs) else ", ".join(names)
            items.append(f"<li><strong>{state}</strong> ({len(names)}): {escape(which)}</li>")
    changed = (
        "<p>Helpers, notebooks or parameters have changed since: these figures are those of "
        f'the <a href="#{slug(ORIGIN)}">commits they name</a>.</p>'
    )
    return (
        f'<div class="notice warn"><p><strong>{done} of {len(material.runs)} runs of the plan are '
        f"up to date with the code in this folder.</strong></p><ul>{''.join(items)}</ul>"
        f"{changed if STALE in groups else ''}</div>\n"
    )


def _broken(problems: Sequence[str]) -> str:
    """Notebooks that could not be converted."""
    items = "".join(f"<li>{escape(problem)}</li>" for problem in problems)
    return f'<div class="notice warn"><ul>{items}</ul></div>\n' if problems else ""


def _facts(material: Material) -> dict[str, str]:
    """Plan, model, data, when, where and with what."""
    records = material.records
    days = sorted(record["created"][:10] for record in records)
    places = sorted({place_of(record) for record in records})
    settings = [
        setting(runs)
        for runs in by_model(records).values()
        if any(run["notebook"] == PRUNE_NOTEBOOK for run in runs)
    ]
    seconds = sum(seconds_of(record) for record in records)
    versions = [f"{name} {versions_of(records, name)}" for name in MAIN_VERSIONS]
    return {
        "Model and data": "<br>".join(map(markdown, settings)) or "see below",
        "Plan": f"<code>{escape(material.plan)}</code>: {len(records)} records of "
        f"{len(material.runs)} runs, {escape(format_seconds(seconds))} one after the other",
        "Measured": escape(" to ".join(dict.fromkeys((days[0], days[-1])))),
        "On": escape("; ".join(places)),
        "With": escape(", ".join(versions)),
    }


def _footer(material: Material) -> str:
    """Who made the page and when."""
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return (
        '<footer class="foot"><p>Written by '
        f"<code>make report PLAN={escape(material.plan)}</code> on {escape(now)}. The page needs "
        "no network; links to other sites are followed only when pressed.</p></footer>"
    )


# ------------------------------------------------------------------ runs


def _runs_part(material: Material) -> str:
    """How to run each run again, what is special about it, and its executed notebook."""
    lead = (
        "<p>A run that is up to date is not run again: delete its record in "
        f"<code>{escape(show_path(results_dir(material.plan) / 'records'))}</code> first. Beside "
        "each name are the parameters that differ from the notebook's defaults.</p>\n"
    )
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in material.runs:
        groups[run.notebook].append(run)
    return lead + "".join(
        f"<h3>{escape(notebook)}</h3>\n"
        f'<ul class="runs">\n{"".join(_run_item(run, material) for run in runs)}</ul>\n'
        for notebook, runs in groups.items()
    )


def _run_item(run: Run, material: Material) -> str:
    """One run."""
    record = material.record_of(run)
    about = [material.states[run.id]]
    if record is not None:
        about.append(f"{seconds_of(record):,.0f} s")
    changed = {k: v for k, v in run.parameters.items() if run.defaults.get(k) != v}
    options = " ".join(f"<code>{escape(f'{k}={v}')}</code>" for k, v in sorted(changed.items()))
    return (
        f'<li id="run-{escape(run.id)}"><div><p><strong>{escape(run.name)}</strong> '
        f'<span class="soft">{escape(", ".join(about))}</span> {_notebook_links(run)}</p>\n'
        f'<p class="options">{options or "the defaults"}</p></div>\n'
        f"{command(_rerun(run))}</li>\n"
    )


def _notebook_links(run: Run) -> str:
    """Links to the pages of a run's executed and failed notebook, as far as they are there."""
    links = []
    for path, words in ((run.executed_path, "executed"), (run.failed_path, "failed")):
        name = f"{path.stem}.html"
        if (results_dir(run.plan) / "html" / name).is_file():
            target = quote(f"{run.plan}/html/{name}")
            links.append(
                f'<a href="{target}" aria-label="{words} notebook of {escape(run.name)}">'
                f"{words} notebook</a>"
            )
    return " ".join(links)


def _rerun(run: Run) -> str:
    """The command that runs one run."""
    only = glob.escape(f"{run.notebook}/{run.name}")
    return f"make reproduce PLAN={run.plan} ONLY='{only}'"
