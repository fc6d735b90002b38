"""The page of how each claim was tested: all comparisons, p, margins, rules, runs and records."""

import itertools
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from helpers.paths import reference_dir, root
from reproduction.claim_draws import QUANTITIES
from reproduction.claim_words import (
    HERE,
    JUST,
    RESERVED,
    barely_decided,
    count_in_words,
    is_assumed,
    limit_in_words,
    named,
    needs_in_words,
    over_windows,
    p_of_all_pages,
    points_to,
    rival_in_words,
    samples,
    show_mean,
    signed_number,
)
from reproduction.claims import (
    CLAIMS,
    DECIDING,
    FAILS,
    FEWEST_LAYERS,
    HALF,
    HOLDS,
    LEVEL,
    MOST,
    NEGLIGIBLE,
    OPEN,
    OURS,
    RELEASED,
    UNTESTED,
    Condition,
    Mean,
    judge_claims,
    with_margin,
)
from reproduction.labels import column_key
from reproduction.markdown import listed, text_table
from reproduction.records import Records, read_records, record_id, run_seconds
from reproduction.runs import (
    FEWEST,
    common_parameters,
    full_name,
    model_sentence,
    perplexity_runs,
)
from reproduction.tables import middle_and_ends, window_spread

PAGE = "claims_tested.md"
TESTED_HEADING = (
    "# How each claim was tested\n\nWhat stands behind the verdicts on [the claims](claims.md): "
    "the words, p, the margin, the rules, and of each claim all numbers, runs and records.\n\n"
)
OLD_MARGIN = 0.01  # up to 0.10.0
FORMER = f"with the margin of {100 * OLD_MARGIN:.0f} % used until 0.10.0"
# of claims that 0.8.0 had measured
WIDENED = "; it was widened when five samples were known"
# parts of the table of a claim's numbers
DECIDES = "decide the verdict"
CONTROL = "in the method's place, as a control"
SHOWN = "shown only, decide nothing"
MARKS = {HOLDS: " ✓", FAILS: " ✗"}  # of a number by its own ±, as SIDES says
SIDES = (
    "A number below 0 is one by which the method that the claim names first is below the other. "
    "The number of samples stands in brackets. ✓: on the claim's side of the limit by more than ±; "
    "✗: on the other side by more than ±; neither: the interval straddles it, or has too few "
    "samples. ∞: not reached in the iterations of the study; between two "
    "iterations the objective is interpolated."
)
RULES = (
    "Methods are compared **in pairs** of runs with the same calibration sample (seed), the same "
    "setting (that of most runs), the same processor and, for answers, the same questions. Several "
    "records of one sample count once, with their mean. The two may be of different commits: `make "
    "same` has found the present code equal to theirs, bit for bit, on probes and the plan smoke.",
    "**A column** (a sparsity or a pattern) is decided by its own samples, at least "
    f"{FEWEST}. With fewer it has no ± over samples and decides nothing (for answers, ± over "
    "questions is shown).",
    "**±** is half of Student's 95 % interval over samples. For ratios it is taken over their "
    "logarithms, so that a change in % is that of the geometric mean. Where samples answer the "
    "same questions, two standard errors over these are added in quadrature. ± covers these texts "
    "only: all samples are from one pool, and all runs share the evaluation windows.",
    "**A verdict**:\n"
    "   - *holds*, if every column is on the claim's side of the limit by more than ±;\n"
    "   - *does not hold*, if one is on the other side by more than ±;\n"
    f"   - *{OPEN}* otherwise, and if p after correction (rule 5) is above {LEVEL:g};\n"
    "   - *too few runs*, *no runs*, *not timed alone*: why a claim is not tested.\n\n"
    "   *Measured* shows one column: if the claim holds (and is of one quantity), the one nearest "
    "to its limit; if it is not tested, the one furthest behind, or with most samples; otherwise "
    "the one that p belongs to. Runs that decide nothing *suggest* yes if all means are clear of "
    "the limit on the right side, and no if one is clear of it on the wrong side. A mean is clear "
    f"of it if it is further away than ±, or with fewer than {FEWEST} samples than "
    f"{100 * NEGLIGIBLE:.0f} % (for answers than ± over questions, too).",
    "**p** is that of Student's t-test, two-sided. If all means are on the claim's side, it is the "
    "largest of the columns' (*measured* may show another column; the table of p says which). If "
    "not, it is the smallest of those on the other side, times the number of columns. Holm's "
    "method corrects it for the interval claims of the page; ± is not corrected. Neither p nor ± "
    "accounts for having looked at the results and then added samples. The columns of `full` other "
    "than 60 % were seen after three samples and have four now, since three would hardly survive "
    "the correction (4:8 has three). "
    "Wanda, ADMM1 and ALPS at 60 % were seen after five and have eight, as many as their rivals. "
    "The options of claims 6, 8 and 15 were seen after four of these samples, the exact fit of "
    "claim 25 after two; they have the eight planned. Claim 20 was seen after three and has the "
    "five planned. So these p are somewhat too small.",
    f"**“No more than”** leaves a margin of {100 * NEGLIGIBLE:.0f} % of a perplexity. Pairs are of "
    "one processor, but the rounding of another can move a run by as much (the page of `full` "
    "has what was measured), so a smaller change is hardly a property of a method. A claim of "
    "“lower” has no margin: a small difference counts, on these texts and this kind of processor.",
    "**Layers and seconds.** Claims about layers are counts, without an interval: they must be "
    f"true of {100 * MOST:.0f} % of the problems (a layer at a sparsity, on one mask by Wanda's "
    f"score, budget per matrix) on {FEWEST_LAYERS} layers or more, and do not hold at "
    f"{100 * HALF:.0f} % or fewer. *Worst* is the problem that speaks most against the claim. "
    "Seconds decide only in runs that were timed alone, without others beside them.",
)


class Other(NamedTuple):
    """What the committed records of another page say of a claim."""

    number: int
    model: str
    verdict: Any  # a row of the verdicts
    rows: pd.DataFrame  # of evidence


class Judgement:
    """The verdicts on the records of one model, and what other pages say of the same claims."""

    def __init__(self, records: Records, tables: Path, page: Path) -> None:
        self.records, self.tables, self.page = records, tables, page
        self.verdicts, self.rows = judge_claims(records)
        self.shown = self.verdicts[self.verdicts["n"] > 0]
        # or they are too few for any claim
        self.decides = self.shown["verdict"].ne(UNTESTED).any()
        self.pages = {
            plan: f"[{plan}]({self.path(reference_dir(plan) / 'tables/claims.md')})"
            for plan in DECIDING
        }
        self.deciding = " and ".join(self.pages.values())
        judged = {plan: _judged(plan) for plan in DECIDING}
        self.elsewhere = {  # claims with runs, by plan
            plan: {claim.number for claim in claims if claim.verdict.n > 0}
            for plan, claims in judged.items()
        }
        beside = [_judged("second")] if self.decides else judged.values()
        self.others = {
            claim.number: claim
            for claim in itertools.chain(*beside)
            if claim.verdict.n > 0
        }
        models = {other.model for other in self.others.values()}
        self.models = models - {model_name(records)}
        decided = pd.DataFrame(
            claim.verdict for claim in itertools.chain(*judged.values())
        )
        self.together = p_of_all_pages(self.verdicts, decided)
        self.barely = barely_decided(self.verdicts, self.together)
        self.barely_there = barely_decided(decided, p_of_all_pages(decided, decided))

    def path(self, file: Path) -> str:
        """A file, from the page."""
        return os.path.relpath(file, self.page)

    @property
    def assumed(self) -> list[int]:
        """The claims whose only source is a table that we could not read."""
        return [*self.shown["number"][self.shown["source"].map(is_assumed)]]

    def problems(self) -> str:
        """What a layer problem is, and how many of them a plan that decides has."""
        text = "A *problem* is a layer at a sparsity."
        if self.decides:
            number = self.shown["n"][self.shown["at"] == ""].max()
            text += f" There are {number}, on 29 of the model's 210 layers; a count has no ±."
            text += " ρ is ADMM's penalty; *preconditioning* gives a layer's inputs unit norm."
        return text

    def of(self, row: Any) -> pd.DataFrame:
        """The evidence of a claim."""
        return self.rows[self.rows["number"] == row.number]


def details_markdown(records: Records, tables: Path) -> str:
    """How each claim was tested on the records of one model, for the folder of the tables.

    First what the verdicts mean, p and what would overturn a claim, margins and rules; then each
    claim with all its numbers, runs and records. "" where no claim has runs.
    """
    here = _Tested(list(records), Path(tables), Path(tables))
    return "" if here.shown.empty else here.text()


class _Tested(Judgement):
    """The page of one model."""

    def text(self) -> str:
        """All of it."""
        words = [self.kinds(), self.measured(), self.barely_words(), self.dependence()]
        words += [
            self.sources(),
            self.which_problems(),
            self.windows(),
            *self.guesses(),
        ]
        rules = (f'{n}. <a id="rule-{n}"></a>{rule}' for n, rule in enumerate(RULES, 1))
        margin = f"Why a margin of {100 * NEGLIGIBLE:.0f} %, and what another would say"
        parts = {
            "": model_sentence(self.records),
            "What the words mean": "\n".join(f"- {line}" for line in words if line),
            "How sure: p, and what would overturn a claim": self.sureness(),
            margin: self.margins() if self.decides else "",
            "How a claim is decided: seven rules": "\n".join(rules),
            "The claims, one by one": "\n\n".join(
                [SIDES, *map(self.details, self.shown.itertuples())]
            ),
        }
        texts = (
            f"## {title}\n\n{text}".removeprefix("## \n\n")
            for title, text in parts.items()
            if text
        )
        return "\n\n".join(map(str.rstrip, texts)) + "\n"

    def barely_words(self) -> str:
        """Which claims are decided only just, and what the old margin would say of them."""
        return barely_sentence(self.barely, self.before()) if self.decides else ""

    def guesses(self) -> list[str]:
        """How many samples would decide, and what they would take."""
        if not self.decides:
            return []
        guess = (
            "How many samples would decide is a guess: it supposes that mean and spread stay. "
            "It speaks of these evaluation windows."
        )
        undecided = self.shown["verdict"].eq(OPEN).any()
        return [*([guess] if undecided else []), self.cost()]

    def before(self) -> dict[int, str]:
        """The verdicts that were others with the margin of earlier releases."""
        return at_old_margin(self.records, self.shown)

    def which_problems(self) -> str:
        """Which layer problems there are, of a plan that decides."""
        if not self.decides or (self.shown["at"] != "").all():
            return ""
        return (
            "The layer problems are, of one calibration sample (seed), the 7 layers of blocks 0, "
            "1, 11 and 27 (the first two, that of the massive input of notebook 01, and one of the "
            "last) at 60 %, and o_proj of block 12 at four sparsities."
        )

    def sources(self) -> str:
        """Where the paper's claims are from, and which is not about its text but about its code."""
        if (self.shown["source"] == OURS).all():
            return ""
        own = self.shown["number"][self.shown["source"] == RELEASED]
        released = f" {named(own).capitalize()} is about that code." if len(own) else ""
        return (
            "We had the paper's abstract, its method and its released code, and know what its "
            "tables compare, but could not read their numbers: of a claim with no other source, "
            "we assumed the direction. Of a claim's sentence only words in quotes are the paper's."
            f"{released}"
        )

    def dependence(self) -> str:
        """Which of the paper's claims are no tests of their own."""
        layers = self.shown["at"] == ""
        if not {4, 5, 7, 9} <= set(self.shown["number"]):
            return ""
        records = set(itertools.chain(*self.rows["ids"][self.rows["at"] == ""]))
        return (
            "These tests are not independent: 9 follows from 7, 4 nearly from 5, and all "
            f"{layers.sum()} about layers, ours included, rest on the same {len(records)} records."
        )

    def kinds(self) -> str:
        """What the verdicts mean."""
        return (
            f"**Holds**, *{RESERVED}*: the claim itself is weaker than it sounds, and its remark "
            "says why (a limit of ours other than the margin of "
            f"{100 * NEGLIGIBLE:.0f} %, reworded, not tested in part, implied by another claim, or "
            f"at odds with what others found). *{JUST.capitalize()}*: {OPEN} once p is corrected "
            f"for the claims of all pages. *{HERE.capitalize()}*: {OPEN} once ± over windows "
            "counts too. **Does not hold**: a comparison is on the other side by more than ±. "
            f"**{OPEN.capitalize()}**: a limit lies within ±, or p, corrected for this page's "
            f"claims, is above {LEVEL:g}. Samples that were added after a look are no "
            "reservation; rule 5 lists them."
        )

    def measured(self) -> str:
        """What the column of numbers shows, and how to read it."""
        return (
            "*Measured* shows one comparison of a claim, and p may be that of another. *± over "
            "windows* is over the pieces of text that perplexity is measured on, which all runs "
            "share."
        )

    def windows(self) -> str:
        """What the choice of evaluation windows adds to all ± of perplexities, if it is known."""
        if not self.decides:
            return ""
        _, ratios, windows = window_spread(perplexity_runs(self.records))
        if not (found := middle_and_ends(ratios)):
            return ""
        low, middle, high = found
        table = self.path(self.tables / "windows.md")
        return (
            f"± over samples does not contain the choice of the {windows} evaluation windows: "
            f"others would move a ratio of two perplexities by {middle} % in the median of the "
            f"methods and sparsities ([{low} to {high} %]({table})). ± over windows does, from the "
            f"samples whose records keep the loss of each window. *{HERE.capitalize()}* means that "
            "the two together, the root of the sum of their squares, reach the limit: the verdict "
            "is still that of ± over samples, and is counted apart."
        )

    def sureness(self) -> str:
        """A table of p, and of what would overturn each claim."""
        if not self.decides:
            return ""
        heads = ["#", "p", "that of", "corrected, this page", "corrected, all pages"]
        rows = []
        for row in self.shown.itertuples():
            p = ["–"] * 4  # of counts, and of what is not tested
            if row.family and row.verdict != UNTESTED:
                alone, *p = (
                    f"{each:.2g}"
                    for each in (row.p, row.corrected, self.together[row.number])
                )
                (own,) = self.rows.loc[[row.surest]].itertuples()
                of = f"{signed_number(own)} {rival_in_words(own)}".strip()
                p = [alone, f"{of} at {own.at}", *p]
            rows.append([str(row.number), *p, _overturned(row, self.of(row))])
        return (
            "The last column has what was put in the method's place, or broken in it, so that the "
            "claim no longer holds. Where no control was run, nothing is known to overturn it.\n\n"
            f"{text_table([*heads, 'overturned by'], rows)}\n{self.families()}"
        )

    def families(self) -> str:
        """Which claims p is corrected for, and what changes with those of all pages."""
        own = self.verdicts["number"][self.verdicts["family"] > 0]
        change = "no verdict changes"
        if self.barely:
            change = f"{named(self.barely)} would be {OPEN}"
        return (
            f"p is two-sided, and corrected for the {len(own)} interval claims of this page "
            f"({', '.join(map(str, own))}); corrected for the {len(self.together)} of the "
            f"pages {' and '.join(DECIDING)} together, {change}. A claim that is tested in "
            "part counts with p = 1, unless a column refutes it; one that is not tested at all "
            "does not count."
        )

    def margins(self) -> str:
        """Why the margin is what it is, and what each claim that has one would be with another."""
        claims = _with_margins()
        shown = [n for n in self.shown["number"] if n in claims]
        if not shown:
            return ""
        margins = (NEGLIGIBLE, OLD_MARGIN)
        before = self.before()
        lines, alike, others = [], [], []
        for number in shown:
            first = next(self.rows[self.rows["number"] == number].itertuples())
            (now,) = self.verdicts["verdict"][self.verdicts["number"] == number]
            verdicts = [now, before.get(number, now)]
            lines.append(
                [f"{number}", f"{signed_number(first)} ({first.n})", *verdicts]
            )
            if mean := first.together:
                all_say = [_alone(mean, claims[number], margin) for margin in margins]
                alike += [number] * (all_say == verdicts)
                if all_say != verdicts:
                    text = f"{show_mean(first, mean)} ({samples(mean.n)})"
                    others.append(f"of claim {number} {text}: {', '.join(all_say)}")
        heads = ["#", "these samples", *(f"at {100 * m:.0f} %" for m in margins)]
        sentences = []
        pooled = "With the samples of earlier releases added to these, and without correction,"
        if alike:
            sentences.append(f"{pooled} the verdicts on {named(alike)} are the same.")
        if others:
            sentences.append(f"{pooled} the verdicts are others: {'; '.join(others)}.")
        return (
            f"The margin is {100 * NEGLIGIBLE:.0f} % since the rounding of another processor can "
            f"move a perplexity by as much: {_moved()}. So it does not cover every change of "
            "processor.\n\nThe order of events, for claims 6, 8 and 15:\n\n"
            "1. Release 0.8.0 measured five samples, when the margin was "
            f"{100 * OLD_MARGIN:.0f} %.\n"
            "2. With these known, so not blindly, the margin was widened to "
            f"{100 * NEGLIGIBLE:.0f} %, and eight samples were planned.\n"
            "3. The first five were measured again with later code. The results were looked at "
            "after four.\n"
            "4. Three more were added: the eight of this page.\n\n"
            "Claim 25 came later. What the old margin would say:\n\n"
            f"{text_table(heads, lines)}\n{' '.join(sentences)}"
        )

    def cost(self) -> str:
        """What a missing run would take, and the command that makes it."""
        took = [
            run_seconds(run) / 60
            for run in self.records
            if "seconds" in run
            and (run.get("data") or {}).get("calibration")
            and "method" in run["parameters"]
        ]
        plan = self.tables.parent.name
        minutes = ""
        if took:
            minutes = f" (here {np.median(took):.0f} minutes each in the median)"
        return (
            f"A missing sample is one run of each of the two methods{minutes}. `make reproduce "
            f"PLAN={plan}` makes the runs that have no record of this machine, and `ONLY=` "
            "with a run's name (wildcards in quotes) some of them; a sample beyond those of the "
            f"plan is first written into a file of `runs/{plan}`."
        )

    def details(self, row: Any) -> str:
        """How a claim was tested, a table of all its numbers, p, the runs and their records."""
        rows = self.of(row)
        assumed = "; direction assumed" * (row.number in self.assumed)
        notes = []
        if row.verdict == UNTESTED:
            notes.append(f"Needs {needs_in_words(rows)}.")
        elif row.family:
            at = self.rows.loc[row.surest, "at"]
            where = f" (at {at})" if len(row.columns) > 1 else ""
            notes.append(
                f"p = {row.p:.2g}{where}, and {row.corrected:.2g} after correction for "
                f"{row.family} claims."
            )
        notes += _by_sample(row, rows)
        notes += _earlier_draws(rows)
        notes.append(f"Runs: {'; '.join(map(str, row.scale))}.")
        table = self.path(self.tables / f"{row.table}.md")
        notes.append(f"Table: [{row.table}]({table}).")
        if self.decides and self.models and row.number in self.others:
            there = self.others[row.number]
            notes.append(f"On {there.model}: {points_to(there.verdict, there.rows)}.")
        ids = dict.fromkeys(each for own in rows["ids"] for each in own)
        cells = {}  # runs by what they are, without their seeds
        for each in sorted(ids, key=lambda each: "-seed" in each):
            name, _, seed = each.partition("--")[2].partition("-seed")
            text = f"seed {seed}" if seed and name in cells else each.partition("--")[2]
            cells.setdefault(name, []).append(self.record_link(each, text))
        records = " · ".join(map(", ".join, cells.values())) + self.again(row, rows)
        return (
            f'<a id="tested-{row.number}"></a>**{row.number}. {row.sentence}** {row.how} '
            f"Source: {row.source}{assumed}.\n\n{_numbers(row, rows)}\n{' '.join(notes)}\n\n"
            f"<details><summary>Its records ({len(ids)}{self.hours(ids)})</summary>\n\n{records}"
            "\n\n</details>"
        )

    def again(self, row: Any, rows: pd.DataFrame) -> str:
        """The command that makes the first runs again that a claim's number rests on."""
        ids = rows.loc[row.main, "ids"]
        own = {record_id(run) for run in self.records}
        first = [
            each
            for each in ids
            if each in own and each.partition("-seed")[2] in ("", "0")
        ]
        if not first:
            return ""
        # by the number of the notebook, which leaves out the runs of others by that name
        only = " ".join(f"{each[:2]}*--{each.partition('--')[2]}" for each in first)
        return (
            "\n\nTo make the first of these again, and compare: "
            f"`make reproduce PLAN={self.tables.parent.name} ONLY='{only}'`."
        )

    def hours(self, ids: Iterable[str]) -> str:
        """What some of these runs took, one after the other."""
        found = [
            run for run in self.records if record_id(run) in ids and "seconds" in run
        ]
        return (
            f", {sum(map(run_seconds, found)) / 3600:.1f} hours in all" if found else ""
        )

    def record_link(self, name: str, text: str) -> str:
        """A link to a record of these runs, or of `full`, which answers are paired with."""
        own = {record_id(run) for run in self.records}
        folder = self.tables.parent if name in own else reference_dir("full")
        file = folder / "records" / f"{name}.json"
        return f"[{text}]({self.path(file)})"


def _judged(plan: str) -> list[Other]:
    """What the committed records of a plan say of each claim."""
    records = read_records(reference_dir(plan) / "records")
    verdicts, rows = judge_claims(records)
    return [
        Other(row.number, model_name(records), row, rows[rows["number"] == row.number])
        for row in verdicts.itertuples()
    ]


def model_name(records: Records) -> str:
    """The name of the model, without how it was converted."""
    name = full_name("model", common_parameters(records).get("model"))
    return str(name).partition(" (")[0]


def _moved() -> str:
    """How far another processor has moved perplexities of pruned models."""
    pairs = json.loads((root() / "tests/processors.json").read_text("utf-8"))["pairs"]
    moves = [
        max(pair["metrics"]["perplexity"]) / min(pair["metrics"]["perplexity"]) - 1
        for pair in pairs
        if "perplexity" in pair["metrics"] and any(pair["apart"])
    ]
    more = np.mean([move > NEGLIGIBLE for move in moves])
    return (
        f"in {len(moves)} pairs of runs of pruned models that differ in rounding alone "
        f"(tests/processors.json) by {100 * np.median(moves):.1f} % in the median, by up to "
        f"{100 * max(moves):.0f} %, and by more than {100 * NEGLIGIBLE:.0f} % in "
        f"{100 * more:.0f} % of them"
    )


def _numbers(row: Any, rows: pd.DataFrame) -> str:
    """A table of all numbers of a claim, a line for each condition."""
    heads = ["", "median", "worst", "how many"]
    if row.at:
        heads = ["", *sorted(set(rows["at"]), key=column_key)]
    parts = {DECIDES: [], CONTROL: [], SHOWN: []}
    names = ["quantity", "of", "against", "limit", "side"]
    for _, own in rows.groupby(names, sort=False):
        first = next(own.itertuples())
        if not first.decides and not own["n"].any():
            continue
        quantity = QUANTITIES[first.quantity]
        words = f"{quantity.words} {rival_in_words(first)}".strip()
        table = parts[DECIDES]
        if first.control:
            words = f"{first.control}: {words}"
            table = parts[CONTROL]
        elif not first.decides:
            table = parts[SHOWN]
        elif row.at:
            words += f": {limit_in_words(first)}"
        if row.at:
            cells = {
                each.at: f"{signed_number(each)} ({each.n})"
                + (MARKS.get(each.verdict, "") if each.decides else "")
                if each.n
                else "–"
                for each in own.itertuples()
            }
            numbers = [cells.get(at, "–") for at in heads[1:]]
            over = {each.at: over_windows(each) for each in own.itertuples()}
        else:
            numbers = [quantity.show(first.median), quantity.show(first.worst)]
            numbers.append(count_in_words(first))
            over = {}
        table.append([words, *numbers])
        if any(over.values()):
            cells = [over.get(at) or "–" for at in heads[1:]]
            kept = sorted({f"{each}" for each in own["kept"][own["windows"] > 0]})
            words = (
                f"± over {own['windows'].max()} windows, of {' or '.join(kept)} samples"
            )
            table.append([f"– the same, {words}", *cells])
    rows = []
    for title, own in parts.items():
        if own and title != DECIDES:
            rows.append([f"*{title}:*", *[""] * (len(heads) - 1)])
        rows += own
    return text_table(heads, rows)


def _by_sample(row: Any, rows: pd.DataFrame) -> list[str]:
    """The number of a claim in each of its samples: what ± is made of."""
    (main,) = rows.loc[[row.main]].itertuples()
    if not row.at or main.n < FEWEST:
        return []
    values = ", ".join(map(QUANTITIES[main.quantity].show, main.values))
    of = f"{signed_number(main)} {rival_in_words(main)}".strip()
    return [f"{of} at {row.at} is the mean of these samples: {values}."]


def _earlier_draws(rows: pd.DataFrame) -> list[str]:
    """What draws of earlier releases gave, a sentence for each column."""
    texts = {}
    for row in rows.itertuples():
        own = []
        for each in row.earlier:
            again = f", {each.again} of them measured again since" * (each.again > 0)
            own.append(f"{show_mean(row, each)} ({each.of}: {samples(each.n)}{again})")
        if own and not row.control:
            what = f"{QUANTITIES[row.quantity].words} {rival_in_words(row)}".strip()
            text = f"Earlier releases at {row.at}, {what}: {', '.join(own)}"
            if row.together:
                every = row.together
                text += f"; with these {show_mean(row, every)} ({samples(every.n)})"
            texts[f"{text}. They decide nothing."] = None
    return list(texts)


def _overturned(row: Any, rows: pd.DataFrame) -> str:
    """What was put in the method's place, or broken in it, with which the claim does not hold."""
    if row.verdict in (FAILS, OPEN):
        return "–"
    texts = []
    if row.mutants:
        texts.append(f"a broken solver: {', '.join(row.mutants)}")
    controls = rows[(rows["control"] != "") & (rows["n"] > 0)]
    for words, own in controls.groupby("control", sort=False):
        own = own.assign(few=own["n"] < FEWEST, stands=own["lead"] > 0)
        own["elsewhere"] = own["at"] != row.at
        own = own.sort_values(["few", "stands", "elsewhere", "lead"])
        worst = next(own.itertuples())
        number = f"{signed_number(worst)} at {worst.at} ({samples(worst.n)})"
        passes = "" if worst.lead <= 0 else "; it would hold all the same"
        texts.append(f"{words} in its place: {number}{passes}")
    return "; ".join(texts) or "no control was run"


def _alone(mean: Mean, tests: Iterable[Condition], margin: float) -> str:
    """What an interval of a change says by itself of limits of this margin."""
    leads = [
        each.side * (mean.mean - math.copysign(margin, each.limit)) for each in tests
    ]
    if all(lead > mean.half for lead in leads):
        return HOLDS
    return FAILS if any(-lead > mean.half for lead in leads) else OPEN


def _with_margins() -> dict[int, list[Condition]]:
    """The conditions that decide a claim by the margin, of the claims that have one."""
    claims = {
        claim.number: [
            each
            for each in claim.conditions
            if each.decides and abs(each.limit) == NEGLIGIBLE
        ]
        for claim in CLAIMS
    }
    return {number: tests for number, tests in claims.items() if tests}


def at_old_margin(records: Records, verdicts: pd.DataFrame) -> dict[int, str]:
    """The verdicts on these claims that were others with the margin of earlier releases."""
    if not verdicts["number"].isin(_with_margins()).any():
        return {}
    old, _ = judge_claims(records, with_margin(OLD_MARGIN))
    both = verdicts.merge(old, on="number", suffixes=("", "_old"))
    both = both[both["verdict"] != both["verdict_old"]]
    return dict(zip(both["number"], both["verdict_old"], strict=True))


def barely_sentence(numbers: Sequence[int], before: dict[int, str]) -> str:
    """Which claims are decided by a hair, "" if none is; before: as `at_old_margin` has it."""
    if not numbers:
        return ""
    many = len(numbers) > 1
    they = f"{'they' if many else 'it'} would be {OPEN}"
    sentence = (
        f"{named(numbers).capitalize()} {'are' if many else 'is'} decided only just: corrected "
        f"for the claims of the pages {listed(DECIDING)} together {they}"
    )
    if all(before.get(number) == OPEN for number in numbers):
        return f"{sentence}, and so {they.split()[0]} would {FORMER}{WIDENED}."
    return f"{sentence}."
