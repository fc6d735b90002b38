"""The parts of the report: the verdict, the claims, tables and figures, and where all comes from.

Each is a function of records, or of what was found of them, that returns HTML.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from helpers.claims import FAILS, HOLDS, OPEN, UNTESTED, Claim, Outcome, check_claims
from helpers.describe import describe, kind_of
from helpers.pages import (
    Cell,
    cell_of,
    escape,
    figure,
    frame_table,
    markdown,
    slug,
    table,
)
from helpers.plots import figures, to_svg
from helpers.published import published_markdown, published_table
from helpers.tables import EMBEDDED, PRUNE_NOTEBOOK, Section, sections
from helpers.verdict import Comparison, Verdict, to_rows

Record = Mapping[str, Any]

# a verdict's sign and its class in report.css
SIGNS = {
    HOLDS: ("✓", "holds"),
    FAILS: ("✗", "fails"),
    OPEN: ("?", "undecided"),
    UNTESTED: ("○", "untested"),
}
CAPTIONS = {
    "perplexity": "Perplexity by method and sparsity",
    "perplexity_beside": "Perplexity, with the committed runs of what was not made here",
    "variants": "Other options beside the defaults",
    "zero_shot": "Zero-shot",
    "weight_update": "Ways to refit the weights on one mask",
    "mask": "Ways to choose the mask",
    "cost": "Seconds and memory by method",
}
# the parts that a table's name may have after its model
PARTS = {
    "acc": "accuracy",
    "acc_norm": "accuracy normalised by the answers' length",
    "paired": "differences between models",
    "calibration": "error on calibration text",
    "held-out": "error on held-out text",
}
NOTHING = "–"


@dataclass(frozen=True)
class Topic:
    """A section of the page with the tables and figures that belong to it, by name."""

    title: str
    tables: tuple[str, ...]
    figures: tuple[str, ...]


PICTURE = "In one picture"
TOPICS = (
    Topic(PICTURE, (), ("summary",)),
    Topic("Perplexity", ("perplexity",), ("perplexity", "layer_error")),
    Topic("Changed options", ("variants",), ("variants",)),
    Topic("Zero-shot tasks", ("zero_shot",), ("zero_shot",)),
    Topic(
        "The weight update",
        ("weight_update",),
        ("weight_update", "weight_update_median", "convergence"),
    ),
    Topic("The growing mask", ("mask",), ("schedule",)),
    Topic("The grams", (), ("spectrum",)),
    Topic("What it cost", ("cost",), ("cost",)),
)


def place_of(record: Record) -> str:
    """The device and machine of a record."""
    machine = record["platform"]
    return (
        f"{record['device']} ({machine.get('system', '?')} {machine.get('machine', '?')}, "
        f"{machine.get('cores', '?')} cores)"
    )


def versions_of(records: Iterable[Record], package: str) -> str:
    """The versions of a package that records were made with."""
    found = {record["versions"].get(package) for record in records} - {None}
    return ", ".join(sorted(found)) or "not recorded"


def seconds_of(record: Record) -> float:
    """How long a run took, the kernel's start included where that is known."""
    return record.get("run_seconds", record["seconds"])


def by_model(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The records of each model; those without one belong to none."""
    models: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if "model" in record["parameters"]:
            models[str(record["parameters"]["model"])].append(record)
    return models


def model_name(name: str) -> str:
    """What a reader calls a model."""
    return EMBEDDED["model"] if name == "embedded" else name


# ------------------------------------------------------------------ verdict and claims

Checked = dict[str, list[tuple[Claim, Outcome]]]


def verdict_part(verdict: Verdict) -> str:
    """Every judged metric of the runs here beside the committed one."""
    lead = (
        f"<p>{verdict.reproduced} of {verdict.compared} runs agree with the committed records of "
        "the same runs within what seeds and rounding explain; times and memory belong to a "
        "machine and are not judged."
    )
    if not verdict.compared:
        lead = "<p>No run that was made here has a committed record to be compared with."
    elif verdict.without:
        lead += f" Without a committed record to be compared with: {verdict.without}."
    if not verdict.comparisons:
        return f"{lead}</p>\n"
    apart = [item for item in verdict.comparisons if not item.within]
    if apart:
        lead += f" {len(apart)} of {len(verdict.comparisons)} metrics are further apart or missing:"
    made = _comparison_table(apart, "apart", "Metrics that are apart or missing") if apart else ""
    every = _comparison_table(verdict.comparisons, "verdict", "Here and in the reference")
    summary = f"All {len(verdict.comparisons)} metrics that were compared"
    return f"{lead}</p>\n{made}<details><summary>{summary}</summary>\n{every}</details>\n"


def _comparison_table(comparisons: Sequence[Comparison], name: str, caption: str) -> str:
    """Metrics here beside those of the reference."""
    head, *rows = to_rows(comparisons)
    cells = [
        [Cell(escape(row[0])), *map(_plain_cell, row[1:-1]), _outcome_cell(item)]
        for item, row in zip(comparisons, rows, strict=True)
    ]
    return table([*head[:-1], "outcome"], cells, ident=f"table-{name}", caption=caption)


def _plain_cell(value: str) -> Cell:
    """A cell whose text is not Markdown."""
    return Cell(escape(value), cell_of(value).key)


def _outcome_cell(item: Comparison) -> Cell:
    sign, kind, word = ("✓", "holds", "agrees") if item.within else ("✗", "fails", "apart")
    word = "missing" if item.value is None else word
    return Cell(f'<span class="verdict {kind}"><b aria-hidden="true">{sign}</b> {word}</span>')


def checked_claims(records: Sequence[Record]) -> Checked:
    """Every claim with its outcome, for each model."""
    return {name: check_claims(runs) for name, runs in by_model(records).items()}


def tally(checked: Checked) -> str:
    """How many claims hold, in a sentence."""
    counts = Counter(outcome.verdict for pairs in checked.values() for _, outcome in pairs)
    total = sum(counts.values())
    parts = [
        "1 holds" if counts[HOLDS] == 1 else f"{counts[HOLDS]} hold",
        "1 does not" if counts[FAILS] == 1 else f"{counts[FAILS]} do not",
        f"{counts[OPEN] + counts[UNTESTED]} are not decided or not tested here",
    ]
    text = f"Of {total} claims, {parts[0]}, {parts[1]} and {parts[2]}." if total else ""
    few = 2 * (counts[OPEN] + counts[UNTESTED]) > total
    return f"{text} Most need more runs: the plan full has them." if few else text


def claims_part(checked: Checked) -> str:
    """The claims with their verdicts, numbers and tests."""
    if not checked:
        return "<p>No record that a claim could be tested on.</p>\n"
    made = [
        "<p>Each claim is tested by code on the records; the words of its test stand below.</p>"
    ]
    for name, pairs in checked.items():
        several = len(checked) > 1
        if several:
            made.append(f"<h3>{escape(model_name(name))}</h3>")
        counts = Counter(outcome.verdict for _, outcome in pairs)
        tally = "".join(f"<li>{_badge(v)}: {counts[v]}</li>" for v in SIGNS if counts[v])
        items = "".join(
            _claim_item(number, claim, outcome, "h4" if several else "h3")
            for number, (claim, outcome) in enumerate(pairs, start=1)
        )
        made.append(f'<ul class="tally">{tally}</ul>\n<ol class="claims">\n{items}</ol>\n')
    return "\n".join(made)


def _claim_item(number: int, claim: Claim, outcome: Outcome, level: str) -> str:
    """One claim."""
    return (
        f"<li><{level}>{number}. {markdown(claim.sentence)}</{level}>\n{_badge(outcome.verdict)}\n"
        f"<p>{markdown(outcome.numbers[:1].upper() + outcome.numbers[1:])}</p>\n"
        f'<p class="test">Test: {markdown(claim.test)}</p></li>\n'
    )


def _badge(verdict: str) -> str:
    """A verdict as a sign and words."""
    sign, kind = SIGNS[verdict]
    return f'<span class="verdict {kind}"><b aria-hidden="true">{sign}</b> {escape(verdict)}</span>'


# ------------------------------------------------------------------ tables and figures


def topic_parts(records: Sequence[Record]) -> dict[str, str]:
    """The sections of tables and figures by title; what belongs to no topic comes last."""
    tables, drawn = sections(records), figures(records)
    used = {name for topic in TOPICS for name in (*topic.tables, *topic.figures)}
    rest = Topic(
        "More",
        tuple(name for name in tables if name not in used),
        tuple(dict.fromkeys(kind_of(name) for name in drawn if kind_of(name) not in used)),
    )
    parts, models = {}, list(by_model(records))
    for topic in (*TOPICS, rest):
        made = [
            _tables(name, topic.title, tables[name], models)
            for name in topic.tables
            if name in tables
        ]
        made += [
            figure(to_svg(picture), f"figure-{slug(name)}", describe(name, records))
            for kind in topic.figures
            for name, picture in drawn.items()
            if kind_of(name) == kind
        ]
        if made:
            parts[topic.title] = "".join(made)
    return parts


def beside_part(records: Sequence[Record], committed: Sequence[Record]) -> str:
    """Perplexities of runs made here beside the committed ones of runs that were not; or nothing.

    So that a method's row has others to be compared with before the whole plan has been run.
    """
    here, there = (
        [record for record in some if record["notebook"] == PRUNE_NOTEBOOK]
        for some in (records, committed)
    )
    if not here or not there:
        return ""
    names = ", ".join(sorted(record["name"] for record in here))
    lead = f"<p>Made here: {escape(names)}. All other runs are the committed ones.</p>\n"
    both = [*here, *there]
    found = sections(both)["perplexity"]
    return lead + _tables("perplexity_beside", "Perplexity", found, list(by_model(both)))


def _tables(name: str, title: str, found: Sequence[Section], models: Sequence[str]) -> str:
    """The sections of one table, each with its note; `models` are those that there are."""
    made = []
    for place, section in enumerate(found, start=1):
        fits = [name for name in models if f"{section.about} ".startswith(f"{name} ")]
        model = max(fits, key=len, default="")
        part = section.about.removeprefix(model).strip()
        caption = CAPTIONS.get(name, title) + (f": {PARTS.get(part, part)}" if part else "")
        caption += f" ({model_name(model)})" if len(models) > 1 else ""
        ident, best = f"table-{slug(name)}-{place}", name.startswith("perplexity")
        note = markdown(section.note) + (" Bold: the lowest after pruning." if best else "")
        about = {"ident": ident, "caption": caption, "note": f"{ident}-note"}
        made.append(
            f'<p class="note" id="{ident}-note">{note}</p>\n'
            f"{frame_table(section.frame, section.spread, best=best, **about)}"
        )
    return "".join(made)


def published_part(records: Sequence[Record]) -> str:
    """Published figures beside ours where they are about the same thing."""
    frame = published_table(records)
    if frame is None:
        return f"<p>{markdown(published_markdown(records))}</p>\n"
    made = frame_table(
        frame.set_index("model"), ident="table-published", caption="Here and in publications"
    )
    return f"<p>Only where model, method, pattern, metric and window are the same.</p>\n{made}"


# ------------------------------------------------------------------ where it comes from


def provenance_part(records: Sequence[Record]) -> str:
    """Commits, versions, models, texts and seeds of the records."""
    parts = [
        ("Code", "commits", ("commit", "uncommitted changes", "records", "first", "last"), _code),
        ("Packages", "versions", ("package", "version"), _packages),
        ("Models", "models", ("model", "what", "revision", "sha256"), _models),
        ("Texts and tasks", "texts", ("use", "name", "package", "sha256"), _texts),
        ("Seeds", "seeds", ("seed", "values"), _seeds),
    ]
    made = []
    for caption, name, head, rows_of in parts:
        rows = [[Cell(escape(value)) for value in row] for row in rows_of(records)]
        if rows:
            made.append(table(head, rows, ident=f"table-{name}", caption=caption))
    return "".join(made)


def _code(records: Iterable[Record]) -> list[tuple[str, ...]]:
    """Commit, whether it was changed, how many records, and from when to when."""
    made: dict[tuple[str, str], list[str]] = defaultdict(list)
    for record in records:
        git = record["git"] or {}
        dirty = {True: "yes", False: "no"}.get(git.get("dirty"), "not known")
        made[git.get("commit", "not known"), dirty].append(record["created"][:16].replace("T", " "))
    rows = sorted(made.items(), key=lambda item: min(item[1]))
    return [
        (commit, dirty, str(len(times)), min(times), max(times)) for (commit, dirty), times in rows
    ]


def _packages(records: Sequence[Record]) -> list[tuple[str, ...]]:
    names = dict.fromkeys(name for record in records for name in record["versions"])
    return [(name, versions_of(records, name)) for name in names]


def _models(records: Iterable[Record]) -> list[tuple[str, ...]]:
    found = dict.fromkeys(
        (
            str(model.get("name", "?")),
            f"{model.get('architecture', '?')}, {model.get('parameters', 0):,} parameters, "
            f"{model.get('dtype', '?')}",
            str(model.get("revision") or NOTHING),
            str(model.get("sha256") or NOTHING),
        )
        for model in (record["model"] for record in records)
        if model
    )
    return list(found)


def _texts(records: Iterable[Record]) -> list[tuple[str, ...]]:
    found = dict.fromkeys(
        (
            use,
            str(text.get("name", "?")),
            ", ".join(str(text[key]) for key in ("package", "harness", "revision") if text.get(key))
            or NOTHING,
            str(text.get("sha256") or NOTHING),
        )
        for record in records
        for use, text in (record["data"] or {}).items()
        if isinstance(text, dict)
    )
    return list(found)


def _seeds(records: Iterable[Record]) -> list[tuple[str, ...]]:
    found: dict[str, set[str]] = defaultdict(set)
    for record in records:
        for name, seed in record["seeds"].items():
            found[name].add(str(seed))
    return [(name, ", ".join(sorted(values))) for name, values in found.items()]
