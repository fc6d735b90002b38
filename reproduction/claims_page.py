"""The page of claims: a line for each claim, with its verdict and the number that decides it.

How each was tested stands on another page, see `reproduction.claims_tested`.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from helpers.explore.names import display_name
from helpers.paths import replace_file, root
from reproduction.claim_draws import QUANTITIES
from reproduction.claim_words import (
    POINTS,
    columns_in_words,
    counts_table,
    headline,
    main_number,
    named,
    numbers_of,
    points_nowhere,
    points_to,
    remarks,
    verdict_words,
)
from reproduction.claims import (
    CLAIMS,
    FAILS,
    GONE,
    HOLDS,
    NOWHERE,
    OPEN,
    OURS,
    UNTESTED,
)
from reproduction.claims_tested import (
    PAGE,
    TESTED_HEADING,
    Judgement,
    Other,
    details_markdown,
    model_name,
)
from reproduction.earlier import earlier_draws
from reproduction.markdown import listed, text_table, unbroken
from reproduction.pipelines import BASE
from reproduction.records import Records, run_seconds
from reproduction.runs import by_model, common_parameters, model_sentence

LEGEND = (
    "± is half of a 95 % interval over samples of the calibration text; for answers, over samples "
    "and questions. A claim **holds** if all its comparisons are on its side of the limit by more "
    "than ±, and p, corrected for this page's claims, is at most 0.05: *only just* if correction "
    "for all our pages would leave it open, and *with a reservation* if it says less than it seems "
    "to (see its remark). It is **undecided** if a limit lies within ±. *Measured* shows the "
    "comparison that is nearest to the limit, or that decides. A claim's number, which is a name "
    "and no rank, leads to all comparisons, p, its source in the paper, and the runs."
)
MODEL = "The paper's claims, as we read them: the whole model"
LAYERS = "The paper's claims, as we read them: single layers"
ADDED_BY_US = "Added by us"
# what the paper's method does, in a few words, for who will retell it; by claim
TOPICS = {
    11: "has a lower perplexity than SparseGPT and Wanda",
    10: "gains from its gradual mask",
    12: "takes at most 25 % longer than SparseGPT with this much text",
    5: "solves a layer to within 1 % of its optimum in 20 iterations",
    4: "leaves a smaller layer error than SparseGPT's update",
    1: "needs fewer iterations than Adam and SGD",
    2: "takes less time than these",
    17: "has a lower perplexity than ALPS, a method of the same year",
    21: "beats SparseGPT at every sparsity without its gradual mask",
    3: "needs fewer iterations than conjugate gradients on a fixed mask",
    8: "needs preconditioning",
    13: "answers more questions than SparseGPT and Wanda",
}
FIRST = (11, 10, 12, 13, 14)  # what a reader of the paper asks; then by number
SCALE = ("model", "calibrated on", "evaluated on", "hardware", "minutes")
PAPER = (  # as the plan `paper` lays it out
    "LLaMA-7B; LLaMA-2-7B, 13B and 70B",
    "128 x 2048 tokens",
    "all windows of 2048 tokens; 7 tasks, all questions",
    "not known to us; the plan `paper` needs a GPU of 80 GB",
    "not known to us",
)


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
        f"# {title}\n\n{about}, tested by code on the records of runs. [How each was tested]"
        f"({PAGE}) · [what this project is]({readme}) · [all numbers]({numbers}) · "
        f"[what the words mean]({words})\n\n"
    )


def claims_markdown(records: Records, tables: Path, page: Path | None = None) -> str:
    """The page of claims on the records of one model, without its title.

    It begins with how many claims hold, and which to retell. Then comes a line for each claim with
    its verdict and the number that decides it, what the paper says that no run tests, and how large
    the runs are. Of runs that decide nothing the line says where they point, beside the verdict of
    the plans `full` and `beyond`.
    Args: tables, the folder of the tables; page, where links start, by default there.
    """
    here = _Page(list(records), Path(tables), Path(page or tables))
    if here.shown.empty:
        return f"No claim has runs here: see {here.deciding}.\n"
    parts = [here.opening(), *here.lines(), here.notes(), here.scale()]
    return "\n\n".join(part.rstrip() for part in parts if part) + "\n"


class _Page(Judgement):
    """The page of one model."""

    def opening(self) -> str:
        """How many claims hold, which to retell, and how to read the tables."""
        toy = (
            f"{model_sentence(self.records)} It is a *toy* beside the paper's models: no number "
            "here carries over to a large one. The wording of the claims and their limits are ours"
        )
        if self.assumed and self.decides:
            toy += f", the direction of {numbers_of(sorted(self.assumed))} too"
        if not self.decides:
            few = (
                f"**These runs are too few to decide any of the {len(self.shown)} claims that they "
                "say something of.**"
            )
            return f"{few}\n\n{toy}."
        parts = (
            f"**{headline(self.verdicts)}**",
            take_away(self.verdicts),
            counts_table(self.verdicts, self.barely).rstrip(),
            f"{toy}.",
            LEGEND,
        )
        return "\n\n".join(part for part in parts if part)

    def groups(self) -> list[tuple[str, pd.Series]]:
        """The tables of lines: the paper's claims on the model, those on layers, and ours."""
        added = self.shown["source"] == OURS
        layers = self.shown["at"] == ""
        groups = (
            (MODEL, ~added & ~layers),
            (LAYERS, ~added & layers),
            (ADDED_BY_US, added),
        )
        return [(title, own) for title, own in groups if own.any()]

    def ordered(self, own: pd.Series) -> pd.DataFrame:
        """The claims of a group, FIRST first."""
        place = {number: i for i, number in enumerate(FIRST)}
        return self.shown[own].sort_values(
            "number", key=lambda n: n.map(place).fillna(len(FIRST) + n)
        )

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
            problems = self.problems() if title == LAYERS else ""
            texts.append("\n\n".join(filter(None, [f"**{title}**", problems, table])))
        model = str(common_parameters(self.records).get("model"))
        no_paper = (self.shown["source"] == OURS).all()
        if self.decides and not no_paper and model.startswith("embedded"):
            texts.append(self.nowhere())
        return texts

    def line(self, row: Any) -> list[str]:
        """The cells of a claim."""
        rows = self.of(row)
        link = f"[{row.number}]({self.path(self.tables / PAGE)}#tested-{row.number})"
        cells = [f'<a id="claim-{row.number}"></a>{link}', row.sentence.rstrip(".")]
        number = main_number(row, rows)
        if not self.decides:
            pointing = POINTS.get(row.points) or points_nowhere(row)
            other = self.others.get(row.number)
            there = _verdict_there(row, rows, other, self.barely_there)
            return [*cells, pointing, number + _only_at(row, rows), *there]
        verdict = verdict_words(row, rows, self.barely)
        if row.verdict == UNTESTED:
            number = points_to(row, rows)
        said = [*remarks(row, rows)]
        if row.number in self.barely:
            said.append(
                f"{OPEN} if p is corrected for the {len(self.together)} interval claims of all "
                f"our pages ({self.together[row.number]:.2g})"
            )
        return [*cells, verdict, number, ";<br>".join(said)]

    def nowhere(self) -> str:
        """What the paper says or shows, and no run of the embedded models tests."""
        columns = set(self.rows["at"][self.rows["lacks"] == ""]) - {""}
        parts = {}  # by what they need
        for each in NOWHERE:
            if each.column in columns:
                continue
            own = earlier_draws()
            own = own[(own["at"] == each.column) & (own["of"] == BASE)]
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
        notes = []
        for plan, link in self.pages.items():
            if there := sorted(missing & self.elsewhere[plan]):
                notes.append(f"Claims {numbers_of(there)}: see {link}.")
        if nowhere := sorted(missing.difference(*self.elsewhere.values())):
            sentences = [c.sentence.rstrip(".") for c in CLAIMS if c.number in nowhere]
            notes.append(
                f"{_claims(nowhere)} no runs yet, here or elsewhere: {'; '.join(sentences)}."
            )
        return " ".join([*notes, GONE])

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
        own = [f"{model_name(self.records)}, a toy", calibration, evaluation or "–"]
        own += [f"CPU: {processors}", f"{minutes:.0f}"]
        rows = [["**this reproduction**", *own], ["**the paper**", *PAPER]]
        table = text_table(["", *SCALE], rows)
        return f"**These runs and the paper's**\n\n{table}"


def take_away(verdicts: pd.DataFrame) -> str:
    """What the paper's method does by its main claims, in a few words with their numbers."""
    by_verdict = {}
    for verdict in (HOLDS, FAILS, OPEN):
        own = set(verdicts.loc[verdicts["verdict"] == verdict, "number"])
        topics = [f"{text} ({n})" for n, text in TOPICS.items() if n in own]
        if topics:
            by_verdict[verdict] = listed(topics)
    says = {
        HOLDS: "On this model the paper's method {}.",
        FAILS: "Not so: that it {}.",
        OPEN: "Whether it {} is undecided.",
    }
    texts = [says[verdict].format(topics) for verdict, topics in by_verdict.items()]
    return f"**To retell**: {' '.join(texts)}" if texts else ""


def _verdict_there(
    row: Any, rows: pd.DataFrame, other: Other | None, barely: Sequence[int]
) -> list[str]:
    """Two cells: the verdict of the deciding plans, and their own number."""
    if not other:
        return ["–", "–"]
    there, evidence = other.verdict, other.rows
    text = main_number(there, evidence)
    if there.verdict == UNTESTED:
        text = points_to(there, evidence)
    if {row.points, there.points} == {HOLDS, FAILS}:
        both = rows.merge(evidence, on=["quantity", "against", "limit", "at"])
        if (both["lead_x"] * both["lead_y"] < 0).any():
            text += "; these runs point the other way"
    return [verdict_words(there, evidence, barely), text]


def _only_at(row: Any, rows: pd.DataFrame) -> str:
    """Which of the columns that a claim rests on have runs, if not all of them have any."""
    needed = rows[rows["needed"] & rows["decides"]]
    columns = needed.groupby("at", sort=False)["n"].max()
    have = [*columns.index[columns > 0]]
    if not row.at or len(have) == len(columns) or not have:
        return ""
    were = "was" if len(have) == 1 else "were"
    return f"; only {columns_in_words(have)} {were} run here"


def _claims(numbers: Sequence[int]) -> str:
    """Claims by their numbers, with a verb: "Claims 18 and 19 have"."""
    return f"{named(numbers).capitalize()} {'have' if len(numbers) > 1 else 'has'}"


def write_claims(records: Records, folder: str | Path) -> list[Path]:
    """Write claims.md and claims_tested.md into the folder of the tables; return their paths.

    Each has a section for each model. Raises FileError if the folder cannot be written.
    """
    folder = Path(folder)
    models = [*by_model(records).values()]
    if not models:
        return []
    pages = {
        "claims.md": [claims_markdown(runs, folder) for runs in models],
        PAGE: [text for runs in models if (text := details_markdown(runs, folder))],
    }
    heads = {"claims.md": claims_heading(folder), PAGE: TESTED_HEADING}
    return [
        replace_file(folder / name, heads[name] + "\n".join(texts))
        for name, texts in pages.items()
        if texts
    ]
