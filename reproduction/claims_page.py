"""The page of claims: a line for each claim with its verdict, then how each was tested.

This is the one place where sentences are made of what `judge_claims` returns.
"""

import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from helpers.explore.names import display_name
from helpers.paths import ZERO_SHOT_NOTEBOOK, reference_dir, replace_file, root
from reproduction.claim_draws import QUANTITIES
from reproduction.claims import (
    ALONE,
    CLAIMS,
    DECIDING,
    FAILS,
    FEWEST_LAYERS,
    GONE,
    HALF,
    HOLDS,
    LEVEL,
    MANY,
    MOST,
    NEGLIGIBLE,
    NOWHERE,
    OPEN,
    OURS,
    RELEASED,
    UNTESTED,
    Condition,
    Mean,
    draws_needed,
    holm,
    judge_claims,
    with_margin,
)
from reproduction.earlier import earlier_draws
from reproduction.labels import column_key
from reproduction.markdown import listed, text_table, unbroken
from reproduction.pipelines import BASE
from reproduction.records import Records, read_records, record_id, run_seconds
from reproduction.runs import (
    FEWEST,
    by_model,
    common_parameters,
    full_name,
    model_sentence,
    perplexity_runs,
)
from reproduction.tables import middle_and_ends, window_spread

THE_PAPERS, ADDED = "of the paper's {} claims", "of {} that we added"
POINTS = {HOLDS: "yes", FAILS: "no"}
SIDE = POINTS | {OPEN: OPEN}  # of one column
TOO_CLOSE = "too close to call"
ALONE_ONLY = "neither, since they were not timed alone"
COUNTED = {  # a verdict on one claim, and on several
    HOLDS: ("holds", "hold"),
    FAILS: ("does not hold", "do not hold"),
    OPEN: ("is undecided", "are undecided"),
    UNTESTED: ("has too few runs", "have too few runs"),
    ALONE: ("lacks runs that were timed alone", "lack runs that were timed alone"),
}
OLD_MARGIN = 0.01  # up to 0.10.0
FORMER = f"with the margin of {100 * OLD_MARGIN:.0f} % used until 0.10.0"
# of claims that 0.8.0 had measured
WIDENED = "; it was widened when five samples were known"
HERE = "for these windows only"
LEGEND = (
    "*Measured* shows one comparison: of a claim that holds the one nearest to its limit, of any "
    "other the one that decides. ± is half of a 95 % interval over samples of the calibration "
    "text; for answers, over questions, too. A claim **holds** if all its comparisons are on its "
    "side of the limit by more than ±. The numbers of claims are names, not ranks."
)
ADDED_BY_US = "Added by us"
# claims in a few words each, for who will retell them
TOPICS = {
    11: "a lower perplexity than SparseGPT and Wanda",
    10: "a lower one than with a one-shot mask",
    12: "at most 25 % more time than SparseGPT",
    5: "single layers within 1 % of their optimum after 20 iterations",
    4: "a smaller layer error than SparseGPT's update",
    1: "fewer iterations than Adam and SGD",
    2: "less time than these",
    8: "the need of a model for preconditioning",
    13: "more right answers than SparseGPT and Wanda",
}
FIRST = (11, 10, 12, 13, 14)  # what a reader of the paper asks; then by number
PLAINLY = "plainly"
RESERVED = "with a reservation"
JUST = "only just"
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
SCALE = ("model", "calibrated on", "evaluated on", "hardware", "minutes")
PAPER = (  # as the plan `paper` lays it out
    "LLaMA-7B; LLaMA-2-7B, 13B and 70B",
    "128 x 2048 tokens",
    "all windows of 2048 tokens; 7 tasks, all questions",
    "not known to us; the plan `paper` needs a GPU of 80 GB",
    "not known to us",
)
RULES = (
    "Methods are compared **in pairs** of runs with the same calibration sample (seed), the same "
    "setting (that of most runs), the same processor and, for answers, the same questions. Several "
    "records of one sample count once, with their mean. The two may be of different commits: `make "
    "same` has found today's code equal to theirs, bit for bit, on probes and on the plan smoke.",
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
    "largest of the columns' (*measured* may show another column; the fold says which p is of). If "
    "not, it is the smallest of those on the other side, times the number of columns. Holm's "
    "method corrects it for the interval claims of the page; ± is not corrected. Neither p nor ± "
    "accounts for having looked at the results and then added samples. The columns of `full` other "
    "than 60 % were seen after three samples and have four now, since three would hardly survive "
    "the correction (4:8 has three). "
    "Wanda, ADMM1 and ALPS at 60 % were seen after five and have eight, as many as their rivals. "
    "The options of claims 6, 8 and 15 were seen after four of today's samples, the exact fit of "
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


def claims_heading(folder: Path) -> str:
    """The title of a page of claims in a folder, and where what it speaks of is found."""
    paper = (
        "*Fast and Effective Weight Update for Pruned Large Language Models* (Boža, TMLR 2024, "
        "[arXiv 2401.02938](https://arxiv.org/abs/2401.02938))"
    )
    title, about = "Do the claims hold?", f"Claims of {paper} and some of our own"
    if Path(folder).parent.name == "beyond":
        title = "Do our own claims hold?"
        about = f"What we claim of steps that go beyond {paper}"
    readme, numbers, words = (
        os.path.relpath(root() / page, folder)
        for page in ("README.md", "docs/numbers.md", "docs/glossary.md")
    )
    return (
        f"# {title}\n\n{about}, tested by code on the records of runs. [What this project is]"
        f"({readme}) · [all numbers]({numbers}) · [what the words mean]({words})\n\n"
    )


def claims_markdown(records: Records, tables: Path, page: Path | None = None) -> str:
    """The page of claims on the records of one model, without its title.

    It begins with which claims hold, and how to read the table; the rest of that is folded. Then
    comes a line for each claim with its verdict and the number that decides it, and what the paper
    says that no run tests; then how large the runs are, folds with p, margins and rules, and how
    each claim was tested. Of runs that decide nothing the
    line says where they point, beside the verdict of the plans `full` and `beyond`.
    Args: tables, the folder of the tables; page, where links start, by default there; elsewhere
        the details are folded too.
    """
    records = list(records)
    here = _Page(records, Path(tables), Path(page or tables))
    if here.shown.empty:
        return f"No claim has runs here: see {here.deciding}.\n"
    parts = [
        here.opening(),
        *here.lines(),
        here.notes(),
        here.scale(),
        *here.sureness(),
        _fold(
            "How a claim is decided: seven rules",
            "\n".join(
                f'{n}. <a id="rule-{n}"></a>{rule}' for n, rule in enumerate(RULES, 1)
            ),
        ),
        here.part(
            "How each claim was tested, with all numbers",
            "\n\n".join([SIDES, *map(here.details, here.shown.itertuples())]),
        ),
    ]
    return "\n\n".join(part.rstrip() for part in parts if part) + "\n"


class _Page:
    """A page of claims: the records, their verdicts, and what other pages say."""

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
        self.models = models - {_model(records)}
        decided = pd.DataFrame(
            claim.verdict for claim in itertools.chain(*judged.values())
        )
        self.together = p_of_all_pages(self.verdicts, decided)
        self.barely = barely_decided(self.verdicts, self.together)
        self.barely_there = barely_decided(decided, p_of_all_pages(decided, decided))
        self.before = at_old_margin(self.records, self.shown) if self.decides else {}

    def path(self, file: Path) -> str:
        """A file, from the page."""
        return os.path.relpath(file, self.page)

    def part(self, title: str, text: str) -> str:
        """A section of the page of claims, folded on any other page."""
        if self.page == self.tables:
            return f"**{title}**\n\n{text}"
        return _fold(title, text)

    def of(self, row: Any) -> pd.DataFrame:
        """The evidence of a claim."""
        return self.rows[self.rows["number"] == row.number]

    def opening(self) -> str:
        """How many claims hold, and so on, and which; how to read the table, partly in a fold."""
        toy = (
            f"{model_sentence(self.records)} It is a *toy* beside the paper's models: no number "
            "here carries over to a large one. The wording of the claims and their limits are ours."
        )
        if not self.decides:
            few = (
                f"**These runs are too few to decide any of the {len(self.shown)} claims that they "
                "say something of.**"
            )
            return f"{few}\n\n{toy}"
        lines = [
            count_sentence(self.verdicts, self.barely),
            self.kinds(),
            self.measured(),
            barely_sentence(self.barely, self.before),
            self.dependence(),
            self.sources(),
        ]
        listing = "\n".join(f"- {line}" for line in lines if line)
        scope = scope_sentence(self.verdicts, self.barely)
        parts = (
            f"**{headline(self.verdicts, self.barely)}** {scope}".rstrip(),
            take_away(self.verdicts),
            toy,
            LEGEND,
            _fold("Which ones; more on verdicts, numbers and sources", listing),
        )
        return "\n\n".join(part for part in parts if part)

    def groups(self) -> list[tuple[str, pd.Series]]:
        """The tables of lines: the paper's claims on the model, those on layers, and ours."""
        added = self.shown["source"] == OURS
        layers = self.shown["at"] == ""
        paper = "The paper's claims, as we read them"
        groups = (
            (f"{paper}: the whole model", ~added & ~layers),
            (
                f"{paper}: single layers (a sample of them, no interval)",
                ~added & layers,
            ),
            (ADDED_BY_US, added),
        )
        return [(title, own) for title, own in groups if own.any()]

    def ordered(self, own: pd.Series) -> pd.DataFrame:
        """The claims of a group, FIRST first."""
        place = {number: i for i, number in enumerate(FIRST)}
        return self.shown[own].sort_values(
            "number", key=lambda n: n.map(place).fillna(len(FIRST) + n)
        )

    def problems(self) -> list[str]:
        """What a problem is, and which ones there are."""
        counts = self.shown.query("table == 'weight_update'")
        if counts.empty:
            return []
        text = "A *problem* is a layer at a sparsity, of one calibration sample (seed)."
        if self.decides:
            text += (
                f" There are {counts['n'].max()}, a sample of the model: the 7 layers of blocks "
                "0, 1, 11 and 27 (the first two, that of the massive input of notebook 01, and one "
                "of the last) at 60 %, and o_proj of block 12 at four sparsities, which are 29 of "
                "210 layers."
            )
        return [text]

    def sources(self) -> str:
        """Where the paper's claims are from, and which is not about its text but about its code."""
        if (self.shown["source"] == OURS).all():
            return ""
        own = self.shown["number"][self.shown["source"] == RELEASED]
        released = (
            f" {_named(own).capitalize()} is about that code." if len(own) else ""
        )
        return (
            "We had the paper's abstract, its method and its released code, and know what its "
            "tables compare, but could not read their numbers: of a claim with no other source, "
            "we assumed the direction. The source of a claim is in brackets; only words in quotes "
            "are the paper's."
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
        """What the verdicts mean, beyond what `LEGEND` says."""
        return (
            f"**Holds**, *{RESERVED}*: the claim itself is weaker than it sounds, and its remark "
            "says why (a limit of ours other than the margin of "
            f"{100 * NEGLIGIBLE:.0f} %, reworded, implied by another claim, or at odds with what "
            f"others found). *{JUST.capitalize()}*: {OPEN} once p is corrected for the claims of "
            f"all pages. *{HERE.capitalize()}*: {OPEN} once ± over windows counts too. **Does not "
            "hold**: a comparison is on the other side by more than ±. "
            f"**{OPEN.capitalize()}**: a limit lies within ±, or p, corrected for this page's "
            f"claims, is above {LEVEL:g}. Samples that were added after a look are no "
            "reservation; rule 5, further down, lists them."
        )

    def measured(self) -> str:
        """What the column of numbers shows, and how to read it."""
        others = f'<a href="#claim-{self.shown["number"].iloc[0]}">the others</a>'
        return (
            f"*Measured*: {others} of each claim are further down, and so is p, which may be that "
            "of another comparison. *Over windows* is ± over the pieces of text that perplexity is "
            "measured on, which all runs share."
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

    def scale(self) -> str:
        """A table of these runs and the paper's, where a claim is the paper's."""
        if (self.shown["source"] == OURS).all():
            return ""
        every = dict.fromkeys(each for scale in self.rows["scale"] for each in scale)
        columns = zip(*every, strict=True)
        calibration, evaluation, processors = (
            "; ".join(dict.fromkeys(filter(None, own))) for own in columns
        )
        minutes = sum(run_seconds(run) for run in self.records if "seconds" in run) / 60
        own = [f"{_model(self.records)}, a toy", calibration, evaluation or "–"]
        own += [f"CPU: {processors}", f"{minutes:.0f}"]
        rows = [["**this reproduction**", *own], ["**the paper**", *PAPER]]
        table = text_table(["", *SCALE], rows)
        return f"**These runs and the paper's**\n\n{table}"

    # --- the lines ----------------------------------------------------------------------------

    def lines(self) -> list[str]:
        """The tables of the paper's claims and of ours, then what it says and no run tests."""
        heads = ["#", "claim", "verdict", "measured", "remarks"]
        if not self.decides:
            model = f" ({' and '.join(sorted(self.models))})" if self.models else ""
            heads[2:] = ["these runs suggest", "measured here"]
            heads += [f"{self.deciding}{model}", "measured there"]
        texts = []
        for title, own in self.groups():
            lines = map(self.line, self.ordered(own).itertuples())
            table = text_table(heads, (map(unbroken, line) for line in lines))
            texts.append(f"**{title}**\n\n{table}")
        model = str(common_parameters(self.records).get("model"))
        no_paper = (self.shown["source"] == OURS).all()
        if self.decides and not no_paper and model.startswith("embedded"):
            texts.append(self.nowhere())
        return texts

    def line(self, row: Any) -> list[str]:
        """The cells of a claim."""
        rows = self.of(row)
        link = f'<a href="#claim-{row.number}">{row.number}</a>'
        source = "" if row.source == OURS else f" *({row.source}{_unseen(row)})*"
        cells = [link, f"{row.sentence.rstrip('.')}{source}"]
        if not self.decides:
            pointing = POINTS.get(row.points) or _nowhere(row)
            other = self.others.get(row.number)
            there = _verdict_there(row, rows, other, self.barely_there)
            return [*cells, pointing, main_number(row, rows), *there]
        verdict = verdict_words(row, rows, self.barely)
        number = main_number(row, rows)
        if row.verdict == UNTESTED:
            number = _points_to(row, rows)
        remarks = [*_remarks(row, rows)]
        if row.number in self.barely:
            p = self.together[row.number]
            remarks.append(f"{OPEN} once p is corrected for all pages ({p:.2g})")
        if before := self.before.get(row.number):
            remarks.append(f"{before} {FORMER}")
        return [*cells, verdict, number, ";<br>".join(remarks)]

    def sureness(self) -> list[str]:
        """Folds with p, with what would overturn each claim, and with other margins."""
        if not self.decides:
            return []
        heads = [
            "#",
            "p",
            "that of",
            "corrected, this page",
            "corrected, all pages",
            "overturned by",
        ]
        rows = []
        for row in self.shown.itertuples():
            p = ["–"] * 4  # of counts, and of what is not tested
            if row.family and row.verdict != UNTESTED:
                alone, *p = (
                    f"{each:.2g}"
                    for each in (row.p, row.corrected, self.together[row.number])
                )
                (own,) = self.rows.loc[[row.surest]].itertuples()
                of = f"{_number(own)} {_beside(own)}".strip()
                p = [alone, f"{of} at {own.at}", *p]
            rows.append([str(row.number), *p, _overturned(row, self.of(row))])
        text = (
            "The last column has what was put in the method's place, or broken in it, so that the "
            "claim no longer holds. Where no control was run, nothing is known to overturn it.\n\n"
            f"{text_table(heads, rows)}\n- {self.families()}"
        )
        folds = [_fold("How sure: p, and what would overturn a claim", text)]
        if margins := self.margins():
            title = (
                f"Why a margin of {100 * NEGLIGIBLE:.0f} %, and what another would say"
            )
            folds.append(_fold(title, margins))
        return folds

    def nowhere(self) -> str:
        """What the paper says or shows, and no run of the embedded models tests."""
        columns = set(self.rows["at"][self.rows["lacks"] == ""]) - {""}
        parts = {}  # by what they need
        for each in NOWHERE:
            if each.column in columns:
                continue
            own = earlier_draws().query("at == @each.column and of == @BASE")
            draws = [
                f"{QUANTITIES[row.quantity].show(math.expm1(row.value))} against "
                f"{display_name(row.against)}"
                for row in own.itertuples()
            ]
            text = f"{each.what} *({each.source})*."
            if draws:
                text += f" One sample of 0.8.0 had a perplexity that was {', '.join(draws)}."
            parts.setdefault(each.needs, []).append(text)
        return "\n\n".join(
            f"**What the paper also says, and no run here tests**; it would take {needs}:\n\n"
            + "\n".join(f"- {text}" for text in texts)
            for needs, texts in parts.items()
        )

    def notes(self) -> str:
        """What stands below the lines."""
        missing = set(self.verdicts["number"][self.verdicts["n"] == 0])
        notes = [self.windows(), *self.problems()]
        for plan, link in self.pages.items():
            if there := sorted(missing & self.elsewhere[plan]):
                notes.append(f"Claims {_numbers_of(there)}: see {link}.")
        if nowhere := sorted(missing.difference(*self.elsewhere.values())):
            sentences = [c.sentence.rstrip(".") for c in CLAIMS if c.number in nowhere]
            notes.append(
                f"{_claims(nowhere)} no runs yet, here or elsewhere: {'; '.join(sentences)}."
            )
        notes.append(GONE)
        if self.decides and self.shown["verdict"].eq(OPEN).any():
            notes.append(
                "How many samples would decide is a guess: it supposes that mean and spread stay. "
                "It speaks of these evaluation windows."
            )
        if self.decides:
            notes.append(self.cost())
        return "**Notes**\n\n" + "\n".join(f"- {note}" for note in notes if note)

    def families(self) -> str:
        """Which claims p is corrected for, and what changes with those of all pages."""
        own = self.verdicts["number"][self.verdicts["family"] > 0]
        change = "no verdict changes"
        if self.barely:
            change = f"{_named(self.barely)} would be {OPEN}"
        return (
            f"p is two-sided, and corrected for the {len(own)} interval claims of this page "
            f"({', '.join(map(str, own))}); corrected for the {len(self.together)} of the "
            f"pages {' and '.join(DECIDING)} together, {change}. A claim that is tested in "
            "part counts with p = 1, unless a column refutes it; one that is not tested at all "
            "does not count."
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

    def margins(self) -> str:
        """Why the margin is what it is, and what each claim that has one would be with another."""
        claims = _with_margins()
        shown = [n for n in self.shown["number"] if n in claims]
        if not shown:
            return ""
        margins = (NEGLIGIBLE, OLD_MARGIN)
        lines, alike, others = [], [], []
        for number in shown:
            first = next(self.rows[self.rows["number"] == number].itertuples())
            (now,) = self.verdicts["verdict"][self.verdicts["number"] == number]
            verdicts = [now, self.before.get(number, now)]
            lines.append([f"{number}", f"{_number(first)} ({first.n})", *verdicts])
            if mean := first.together:
                all_say = [_alone(mean, claims[number], margin) for margin in margins]
                alike += [number] * (all_say == verdicts)
                if all_say != verdicts:
                    text = f"{_show(first, mean)} ({_samples(mean.n)})"
                    others.append(f"of claim {number} {text}: {', '.join(all_say)}")
        heads = ["#", "today's samples", *(f"at {100 * m:.0f} %" for m in margins)]
        sentences = []
        pooled = "With the samples of earlier releases added to today's, and without correction,"
        if alike:
            sentences.append(f"{pooled} the verdicts on {_named(alike)} are the same.")
        if others:
            sentences.append(f"{pooled} the verdicts are others: {'; '.join(others)}.")
        return (
            f"The margin is {100 * NEGLIGIBLE:.0f} % since the rounding of another processor can "
            f"move a perplexity by as much: {_moved()}. So it does not cover every change of "
            "processor. Up to 0.10.0 it was "
            f"{100 * OLD_MARGIN:.0f} %. Of claims 6, 8 and 15, in order: 0.8.0 measured five "
            "samples; the margin was widened when these were known, so not blindly; eight samples "
            "were planned; the first five were measured again, with later code, and three more. "
            "Claim 25 came later. What the old margin would say:\n\n"
            f"{text_table(heads, lines)}\n{' '.join(sentences)}"
        )

    # --- how a claim was tested ---------------------------------------------------------------

    def details(self, row: Any) -> str:
        """How a claim was tested, a table of all its numbers, p, the runs and their records."""
        rows = self.of(row)
        notes = []
        if row.verdict == UNTESTED:
            notes.append(f"Needs {_needs(rows)}.")
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
            notes.append(f"On {there.model}: {_points_to(there.verdict, there.rows)}.")
        ids = dict.fromkeys(each for own in rows["ids"] for each in own)
        cells = {}  # runs by what they are, without their seeds
        for each in sorted(ids, key=lambda each: "-seed" in each):
            name, _, seed = each.partition("--")[2].partition("-seed")
            text = f"seed {seed}" if seed and name in cells else each.partition("--")[2]
            cells.setdefault(name, []).append(self.record_link(each, text))
        records = " · ".join(map(", ".join, cells.values())) + self.again(row, rows)
        return (
            f'<a id="claim-{row.number}"></a>**{row.number}. {row.sentence}** {row.how} '
            f"Source: {row.source}.\n\n{_numbers(row, rows)}\n{' '.join(notes)}\n\n"
            f"{_fold(f'Its records ({len(ids)}{self.hours(ids)})', records)}"
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


def by_kind(
    verdicts: pd.DataFrame, ours: bool
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """The paper's claims or ours that have runs, and the same by a kind of `COUNTED`."""
    own = verdicts[(verdicts["n"] > 0) & ((verdicts["source"] == OURS) == ours)]
    # what was only not timed alone is a kind of its own
    shared = (own["verdict"] == UNTESTED) & (own["lacks"] == ALONE)
    kind = own["verdict"].mask(shared, ALONE)
    return own, {each: own[kind == each] for each in COUNTED if (kind == each).any()}


def headline(verdicts: pd.DataFrame, barely: Sequence[int] = ()) -> str:
    """How many claims hold, and how firmly: "Of the paper's 14 claims 11 hold (3 plainly ..."."""
    sentences = []
    for owner, ours in ((THE_PAPERS, False), (ADDED, True)):
        own, kinds = by_kind(verdicts, ours)
        if own.empty:
            continue
        counts = {kind: len(these) for kind, these in kinds.items()}
        parts = [f"{n} {COUNTED[kind][int(n > 1)]}" for kind, n in counts.items()]
        if HOLDS in kinds:
            firmly = how_firmly(kinds[HOLDS], barely)
            ways = [f"{n} {way}" for way, n in firmly.items()]
            if len(firmly) == 1:
                ways = [way for way in firmly if way != PLAINLY]
            parts[list(kinds).index(HOLDS)] += f" ({', '.join(ways)})" if ways else ""
        if FAILS not in counts:
            parts.append("none is refuted")
        text = f"{owner.format(len(own))} {listed(parts)}."
        sentences.append(f"{text[:1].upper()}{text[1:]}")
    return " ".join(sentences)


def take_away(verdicts: pd.DataFrame) -> str:
    """The main claims of the paper in a few words, with their numbers, by verdict."""
    sentences = []
    for verdict, says in (
        (HOLDS, "Of the paper's method these hold"),
        (FAILS, "These do not"),
        (OPEN, "Undecided"),
    ):
        own = set(verdicts.loc[verdicts["verdict"] == verdict, "number"])
        topics = [f"{text} ({n})" for n, text in TOPICS.items() if n in own]
        if topics:
            sentences.append(f"{says}: {listed(topics)}.")
    return f"**To retell**: {' '.join(sentences)}" if sentences else ""


def count_sentence(verdicts: pd.DataFrame, barely: Sequence[int] = ()) -> str:
    """How many of the claims that the records say something of hold, and so on, and which.

    barely: those that are decided by a hair.
    """
    sentences = []
    for owner, ours in ((THE_PAPERS, False), (ADDED, True)):
        own, by_kinds = by_kind(verdicts, ours)
        kinds = []
        for kind, these in by_kinds.items():
            words = COUNTED[kind]
            text = f"{len(these)} {words[int(len(these) > 1)]}"
            how = how_sure(these, barely) if kind in (HOLDS, FAILS) else {}
            if len(how) > 1:
                parts = (
                    f"{len(each)} {way} ({_numbers_of(each)})"
                    for way, each in how.items()
                )
                kinds.append(f"{text}: {listed([*parts])}")
            else:
                way = "".join(f", {way}" for way in how if way != PLAINLY)
                kinds.append(f"{text} ({_numbers_of(these['number'])}{way})")
        if kinds:
            text = f"{owner.format(len(own))} {'; '.join(kinds)}."
            sentences.append(f"{text[:1].upper()}{text[1:]}")
    return " ".join(sentences)


def how_sure(verdicts: pd.DataFrame, barely: Sequence[int]) -> dict[str, pd.Series]:
    """The numbers of decided claims by how they are: plainly, with a reservation, only just ..."""
    just = verdicts["number"].isin(barely)
    remarked = (verdicts["verdict"] == HOLDS) & (verdicts["remark"] != "") & ~just
    here = verdicts["windows_only"]
    ways = {
        PLAINLY: ~just & ~remarked & ~here,
        RESERVED: remarked & ~here,
        JUST: just & ~here,
        f"{JUST} and {HERE}": just & here,
        HERE: here & ~just,
    }
    return {way: verdicts["number"][own] for way, own in ways.items() if own.any()}


def how_firmly(held: pd.DataFrame, barely: Sequence[int]) -> dict[str, int]:
    """How many of the claims that hold do so plainly, with a reservation, and only just.

    What holds for these windows only is counted as only just.
    """
    ways = how_sure(held, barely)
    plainly, reserved = (len(ways.get(way, ())) for way in (PLAINLY, RESERVED))
    firmly = {
        PLAINLY: plainly,
        RESERVED: reserved,
        JUST: len(held) - plainly - reserved,
    }
    return {way: n for way, n in firmly.items() if n}


def _numbers_of(numbers: Iterable[int]) -> str:
    """Claims by their numbers alone: "6 and 15"."""
    return listed(list(map(str, numbers)))


def main_number(row: Any, rows: pd.DataFrame) -> str:
    """The numbers of the column that `judge_claims` shows of a claim, or of its layer problems.

    Of a claim that is not tested all numbers of that column.
    """
    own = rows.loc[[row.main]]
    if row.at and row.verdict == UNTESTED:
        own = rows[(rows["at"] == row.at) & rows["decides"] & (rows["n"] > 0)]
    if not row.at:
        (each,) = own.itertuples()
        quantity = QUANTITIES[each.quantity]
        return f"{quantity.words}: median {quantity.show(each.median)}, {_right(each)}"
    numbers = {}  # by their words; a dictionary keeps an order
    for each in own.itertuples():
        words = QUANTITIES[each.quantity].words
        numbers.setdefault(words, {})[_in_words(each)] = None
    texts = [f"{words} {' and '.join(found)}" for words, found in numbers.items()]
    windows = _windows(rows.loc[row.main])
    over = f"; {windows} over windows" if windows else ""
    return f"{', '.join(texts)}, at {row.at} ({_samples(row.n)}{over})"


def scope_sentence(verdicts: pd.DataFrame, barely: Sequence[int] = ()) -> str:
    """How many of the paper's claims about the model hold, and of those about single layers."""
    own = verdicts[(verdicts["n"] > 0) & (verdicts["source"] != OURS)]
    scopes = {
        "the whole model": own["at"] != "",
        "single layers (a sample of them, no interval)": own["at"] == "",
    }
    texts = []
    for what, scope in scopes.items():
        held = own[scope & (own["verdict"] == HOLDS)]
        plainly = how_firmly(held, barely).get(PLAINLY, 0)
        if scope.any():
            hold = f"{len(held)} {COUNTED[HOLDS][int(len(held) != 1)]}"
            hold += f", {plainly} {PLAINLY}" * bool(plainly)
            texts.append(f"of the {scope.sum()} about {what} {hold}")
    text = "; ".join(texts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def barely_sentence(numbers: Sequence[int], before: dict[int, str]) -> str:
    """Which claims are decided by a hair, "" if none is; before: as `at_old_margin` has it."""
    if not numbers:
        return ""
    many = len(numbers) > 1
    they = f"{'they' if many else 'it'} would be {OPEN}"
    sentence = (
        f"{_named(numbers).capitalize()} {'are' if many else 'is'} decided only just: corrected "
        f"for the claims of the pages {listed(DECIDING)} together {they}"
    )
    if all(before.get(number) == OPEN for number in numbers):
        return f"{sentence}, and so {they.split()[0]} would {FORMER}{WIDENED}."
    return f"{sentence}."


def at_old_margin(records: Records, verdicts: pd.DataFrame) -> dict[int, str]:
    """The verdicts on these claims that were others with the margin of earlier releases."""
    if not verdicts["number"].isin(_with_margins()).any():
        return {}
    old, _ = judge_claims(records, with_margin(OLD_MARGIN))
    both = verdicts.merge(old, on="number", suffixes=("", "_old"))
    both = both[both["verdict"] != both["verdict_old"]]
    return dict(zip(both["number"], both["verdict_old"], strict=True))


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


def _samples(n: int) -> str:
    """So many samples."""
    return "1 sample" if n == 1 else f"{n} samples"


# ------------------------------------------------------------------ the cells of a line


def verdict_words(row: Any, rows: pd.DataFrame, barely: Sequence[int] = ()) -> str:
    """The verdict; of a claim that is not tested, or not everywhere, with the reason.

    barely: the claims that are decided by a hair.
    """
    by_verdict = {}
    for at, verdict in row.columns.items():
        by_verdict.setdefault(verdict, []).append(at)
    missing = by_verdict.pop(UNTESTED, [])
    if row.verdict == OPEN and row.alone != OPEN:
        return f"**{OPEN} after correction**; by its own ± it {COUNTED[row.alone][0]}"
    if row.verdict != UNTESTED:
        text = f"**{row.verdict}**"
        if row.windows_only:
            just = f"{JUST} and " if row.number in barely else ""
            return f"{text}, {just}{HERE}"
        if row.verdict == HOLDS and row.remark:
            text += f", {RESERVED}"
        return text + f", {JUST}" * (row.number in barely)
    lacking = rows[rows["needed"] & rows["decides"] & (rows["lacks"] != "")]
    why = "too few runs" if (lacking["n"] > 0).any() else "no runs"
    if row.lacks == ALONE:
        why = "not timed alone"
    if not by_verdict:
        return f"**{why}**"
    others = (f"{verdict} at {_columns(at)}" for verdict, at in by_verdict.items())
    return "; ".join([f"**{why}** at {_columns(missing)}", *others])


def _columns(columns: Sequence[str]) -> str:
    """Columns in words: "50, 70 % and 2:4"."""
    sparsities = [at.removesuffix(" %") for at in columns if at.endswith(" %")]
    words = [f"{', '.join(sparsities)} %"] if sparsities else []
    return " and ".join([*words, *(at for at in columns if ":" in at)])


def _remarks(row: Any, rows: pd.DataFrame) -> Iterator[str]:
    """What a reader of a claim's number should know: reservations, reasons, and other numbers."""
    if row.verdict == OPEN:
        yield from _undecided(row, rows)
    if row.remark:
        yield row.remark
    if row.verdict == UNTESTED:
        yield f"needs {_needs(rows)}"
    if row.verdict == FAILS and len(row.columns) > 1:
        yield _sides(row.columns, row.near)
    yield from _range(row, rows)
    yield from _also(row, rows)
    yield from _shown_beside(row, rows)
    if row.near and len(row.columns) == 1:
        yield "± over samples and over windows together reach the limit"
    if row.note:
        yield row.note


def _sides(columns: dict[str, str], near: Sequence[str]) -> str:
    """What each column says, those apart that other windows may change.

    "no at 60 %; for these windows only: yes at 50 %, no at 2:4"
    """
    sides = {False: {}, True: {}}
    for at, verdict in columns.items():
        if verdict in SIDE:  # or has too few runs
            sides[at in near].setdefault(verdict, []).append(at)
    clear, close = (
        ", ".join(f"{SIDE[verdict]} at {_columns(at)}" for verdict, at in own.items())
        for own in sides.values()
    )
    return "; ".join(filter(None, [clear, f"{HERE}: {close}" if close else ""]))


def _shown_beside(row: Any, rows: pd.DataFrame) -> Iterator[str]:
    """The first quantity that decides nothing, of the same column or of a contrast."""
    beside = rows[~rows["decides"] & (rows["control"] == "") & (rows["n"] > 0)]
    if row.at:
        beside = beside[(beside["at"] == row.at) & (beside["quantity"] != "layers")]
        rivals = set(rows["against"][rows["decides"]])
        beside = beside[beside["against"].isin(rivals)]
    else:  # the same quantity of what it is contrasted with
        beside = beside[beside["quantity"].str.startswith(f"{row.quantity},")]
    if beside.empty:
        return
    first = beside[beside["quantity"] == beside["quantity"].iloc[0]]
    words = QUANTITIES[first["quantity"].iloc[0]].words
    if not row.at:
        numbers = f": {_right(next(first.itertuples()))}"
    else:
        numbers = f" {listed([*map(_in_words, first.itertuples())])}"
    yield f"{words}{numbers} (shown only)"


def _undecided(row: Any, rows: pd.DataFrame) -> Iterator[str]:
    """Why a claim is undecided, and how many samples would decide it."""
    if rows.loc[row.main, "verdict"] == OPEN:
        limit = rows.loc[row.main, "limit"]
        shown = QUANTITIES[row.quantity].show(limit) if limit else 0
        if abs(limit) == NEGLIGIBLE and abs(row.mean) > row.half:
            change = "rise" if row.mean > 0 else "fall"
            yield f"it does {change}; whether by more than {shown}, our limit, is open"
        else:
            yield f"the limit, {shown}, lies within ±"
    elif row.alone == OPEN:
        columns = (rows["decides"] & (rows["lacks"] == "")).sum()
        yield f"beyond the limit by its own ±, but not as one of {columns}"
    needed = draws_needed(row, rows)
    about = f"about {needed}" if needed else f"more than {MANY}"
    decide = "refute it" if rows.loc[row.main, "lead"] < 0 else "decide"
    asked = QUANTITIES[row.quantity].notebook == ZERO_SHOT_NOTEBOOK
    none = ", more than the tasks have questions for: it stays open" * asked
    yield f"{about} samples would {decide}{none}"


def _range(row: Any, rows: pd.DataFrame) -> Iterator[str]:
    """How far the differences of a decided claim reach, beside the one that is shown."""
    own = rows[rows["decides"] & (rows["lacks"] == "")]
    comparable = own["quantity"].nunique() == 1 and not own["limit"].any()
    if row.verdict not in (HOLDS, FAILS) or not row.at or not comparable:
        return
    best, worst = (
        next(own.loc[[index]].itertuples())
        for index in (own["lead"].idxmax(), own["lead"].idxmin())
    )
    if best.Index == worst.Index:
        return

    def number(each: Any) -> str:
        return f"{_in_words(each)}, at {each.at}"

    if row.verdict == FAILS:
        yield f"from {number(best)}, to {number(worst)}"
        return
    few = f"the smallest of {len(own)} differences"
    most = own[own["n"] == own["n"].max()]
    if most["at"].nunique() == 1 and not {best.Index, worst.Index} & set(most.index):
        middle = [*map(_in_words, most.itertuples())]
        at, n = most[["at", "n"]].iloc[0]
        yield f"{few}; at {at} {listed(middle)} ({_samples(n)})"
    else:
        yield f"{few}, the largest {number(best)}"


def _also(row: Any, rows: pd.DataFrame) -> Iterator[str]:
    """The other numbers that an undecided claim, or one of several quantities, rests on."""
    own = rows[rows["decides"] & (rows["lacks"] == "")]
    several = own["quantity"].nunique() > 1
    if not row.at or row.verdict == UNTESTED or not (row.verdict == OPEN or several):
        return
    main = own.loc[row.main]
    for each in own.drop(index=row.main).itertuples():
        same = each.quantity == main["quantity"]
        if same and (each.at, each.against) == (main["at"], main["against"]):
            continue  # the other side of the same interval
        words = "" if same else f"{QUANTITIES[each.quantity].words} "
        yield f"also {words}{_in_words(each)}, at {each.at}"


def _unseen(row: Any) -> str:
    """What to know of a claim whose only source is a table that we could not read."""
    return "; direction assumed" if row.source.startswith("table") else ""


def _nowhere(row: Any) -> str:
    """Why runs point neither way."""
    return ALONE_ONLY if row.lacks == ALONE else TOO_CLOSE


def _points_to(row: Any, rows: pd.DataFrame) -> str:
    """Where runs point that decide nothing: "suggests yes: perplexity −20.3 % against ADMM1"."""
    pointing = f"suggests {POINTS[row.points]}" if row.points else _nowhere(row)
    return f"{pointing}: {main_number(row, rows)}"


def _needs(rows: pd.DataFrame) -> str:
    """What a claim lacks to be tested."""
    needed = rows[rows["needed"] & rows["decides"] & (rows["lacks"] != "")]
    # what has no run at all against one rival is named once
    needed = needed.sort_values("n", kind="stable").drop_duplicates("at")
    needs = needed.groupby("lacks", sort=False)["at"]
    return "; ".join(
        f"{lacks} at {_columns(list(at))}".removesuffix(" at ") for lacks, at in needs
    )


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
        number = f"{_number(worst)} at {worst.at} ({_samples(worst.n)})"
        passes = "" if worst.lead <= 0 else "; it would hold all the same"
        texts.append(f"{words} in its place: {number}{passes}")
    return "; ".join(texts) or "no control was run"


def _verdict_there(
    row: Any, rows: pd.DataFrame, other: Other | None, barely: Sequence[int]
) -> list[str]:
    """Two cells: the verdict of the deciding plans, and their own number."""
    if not other:
        return ["–", "–"]
    there, evidence = other.verdict, other.rows
    text = main_number(there, evidence)
    if there.verdict == UNTESTED:
        text = _points_to(there, evidence)
    if {row.points, there.points} == {HOLDS, FAILS}:
        both = rows.merge(evidence, on=["quantity", "against", "limit", "at"])
        unlike = (both["lead_x"] * both["lead_y"] < 0).any()
        text += (
            "; these runs point the other way"
            if unlike
            else f"; {there.at} was not run here"
        )
    return [verdict_words(there, evidence, barely), text]


# ------------------------------------------------------------------ numbers in words


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
        words = f"{quantity.words} {_beside(first)}".strip()
        table = parts[DECIDES]
        if first.control:
            words = f"{first.control}: {words}"
            table = parts[CONTROL]
        elif not first.decides:
            table = parts[SHOWN]
        elif row.at:
            words += f": {_limit(first)}"
        if row.at:
            cells = {
                each.at: f"{_number(each)} ({each.n})"
                + (MARKS.get(each.verdict, "") if each.decides else "")
                if each.n
                else "–"
                for each in own.itertuples()
            }
            numbers = [cells.get(at, "–") for at in heads[1:]]
            over = {each.at: _windows(each) for each in own.itertuples()}
        else:
            numbers = [quantity.show(first.median), quantity.show(first.worst)]
            numbers.append(_right(first))
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


def _limit(row: Any) -> str:
    """What must be true of a number: "below 0", "at most +25.0 %"."""
    if not row.limit:
        return "above 0" if row.side > 0 else "below 0"
    side = "above" if row.side > 0 else "at most"
    return f"{side} {QUANTITIES[row.quantity].show(row.limit)}"


def _right(row: Any) -> str:
    """On how many layer problems a claim is true: "above 1 on 32 of 32 problems"."""
    text = f"{_limit(row)} on {row.right:.0f} of {row.n} problems"
    if row.unknown:
        text += f", not known on {row.unknown:.0f}"
    return text + _shared(row)


def _beside(row: Any) -> str:
    """What the number of a row of `evidence` is compared with, if its unit does not say so."""
    if not row.against or row.quantity in ("closed", "times"):
        return ""
    if row.of.startswith(f"{row.against} ("):
        own = "" if row.against == BASE else f"of {display_name(row.against)} "
        return f"{own}with `{row.of.removeprefix(row.against).strip(' ()')}`"
    return f"against {display_name(row.against).partition(',')[0]}"


def _number(row: Any) -> str:
    """The number of a row of `evidence` about a model: "−28 ± 3 %"."""
    return QUANTITIES[row.quantity].show(row.mean, row.half) + _shared(row)


def _shared(row: Any) -> str:
    """What seconds that decide nothing for that reason are followed by."""
    return " (on a shared machine)" if row.lacks == ALONE else ""


def _in_words(row: Any) -> str:
    """The number of a row of `evidence` with its side in words: "28 ± 3 % below SparseGPT's"."""
    beside = _beside(row)
    number = QUANTITIES[row.quantity].show(row.mean, row.half)
    sign = re.compile(r"[+−](?=\d)")
    signs = {*sign.findall(number)}
    if (
        not beside or len(signs) > 1
    ):  # the latter: an interval that is given by its ends
        return f"{_number(row)} {beside}".strip()
    bare = sign.sub("", number)
    if beside.startswith("against "):
        rival = f"{beside.removeprefix('against ')}'s"
        sides = {"−": f"{bare} below {rival}", "+": f"{bare} above {rival}"}
        level = f"level with {rival} ({bare})"
    else:  # with an option
        sides = {"−": f"{bare} lower {beside}", "+": f"{bare} higher {beside}"}
        level = f"the same ({bare}) {beside}"
    return (sides[signs.pop()] if signs else level) + _shared(row)


def _windows(row: Any) -> str:
    """± of a row of `evidence` over the evaluation windows, "" where no record keeps these."""
    if not row.windows:
        return ""
    return f"± {QUANTITIES[row.quantity].show(0.0, row.window_half).partition('± ')[2]}"


def _show(row: Any, mean: Mean) -> str:
    """A mean of draws in the unit of a row of `evidence`."""
    return QUANTITIES[row.quantity].show(mean.mean, mean.half)


def _alone(mean: Mean, tests: Iterable[Condition], margin: float) -> str:
    """What an interval of a change says by itself of limits of this margin."""
    leads = [
        each.side * (mean.mean - math.copysign(margin, each.limit)) for each in tests
    ]
    if all(lead > mean.half for lead in leads):
        return HOLDS
    return FAILS if any(-lead > mean.half for lead in leads) else OPEN


def _by_sample(row: Any, rows: pd.DataFrame) -> list[str]:
    """The number of a claim in each of its samples: what ± is made of."""
    (main,) = rows.loc[[row.main]].itertuples()
    if not row.at or main.n < FEWEST:
        return []
    values = ", ".join(map(QUANTITIES[main.quantity].show, main.values))
    of = f"{_number(main)} {_beside(main)}".strip()
    return [f"{of} at {row.at} is the mean of these samples: {values}."]


def _earlier_draws(rows: pd.DataFrame) -> list[str]:
    """What draws of earlier releases gave, a sentence for each column."""
    texts = {}
    for row in rows.itertuples():
        own = []
        for each in row.earlier:
            again = f", {each.again} of them measured again today" * (each.again > 0)
            own.append(f"{_show(row, each)} ({each.of}: {_samples(each.n)}{again})")
        if own and not row.control:
            what = f"{QUANTITIES[row.quantity].words} {_beside(row)}".strip()
            text = f"Earlier releases at {row.at}, {what}: {', '.join(own)}"
            if row.together:
                text += f"; with today's {_show(row, row.together)} ({_samples(row.together.n)})"
            texts[f"{text}. They decide nothing."] = None
    return list(texts)


# ------------------------------------------------------------------ the page around the lines


def _fold(title: str, text: str) -> str:
    """Markdown that is hidden until its title is clicked."""
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


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


def p_of_all_pages(own: pd.DataFrame, others: pd.DataFrame) -> pd.Series:
    """p of each interval claim, corrected for those of all pages together."""
    own, others = (
        verdicts[verdicts["family"] > 0].set_index("number")["p"]
        for verdicts in (own, others)
    )
    return holm(pd.concat([own, others.drop(own.index, errors="ignore")]))


def barely_decided(verdicts: pd.DataFrame, together: pd.Series) -> list[int]:
    """The decided claims of a page that p, corrected for all pages, would leave open."""
    own = verdicts[(verdicts["family"] > 0) & verdicts["verdict"].isin([HOLDS, FAILS])]
    return [number for number in own["number"] if together[number] > LEVEL]


def _judged(plan: str) -> list[Other]:
    """What the committed records of a plan say of each claim."""
    records = read_records(reference_dir(plan) / "records")
    verdicts, rows = judge_claims(records)
    return [
        Other(row.number, _model(records), row, rows[rows["number"] == row.number])
        for row in verdicts.itertuples()
    ]


def _named(numbers: Sequence[int] | pd.Series) -> str:
    """Claims by their numbers: "claim 6", "claims 6 and 15"."""
    return f"claim{'s' * (len(numbers) > 1)} {_numbers_of(numbers)}"


def _claims(numbers: Sequence[int]) -> str:
    """Claims by their numbers, with a verb: "Claims 18 and 19 have"."""
    return f"{_named(numbers).capitalize()} {'have' if len(numbers) > 1 else 'has'}"


def _model(records: Records) -> str:
    """The name of the model, without how it was converted."""
    name = full_name("model", common_parameters(records).get("model"))
    return str(name).partition(" (")[0]


def write_claims(records: Records, folder: str | Path) -> list[Path]:
    """Write claims.md, a section for each model, into the folder of the tables; return its path.

    Raises FileError if the folder cannot be written.
    """
    folder = Path(folder)
    texts = [claims_markdown(runs, folder) for runs in by_model(records).values()]
    if not texts:
        return []
    page = claims_heading(folder) + "\n".join(texts)
    return [replace_file(folder / "claims.md", page)]
