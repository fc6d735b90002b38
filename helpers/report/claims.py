"""The paper's claims, the verdicts on them by the records of a plan, and the page of claims.

Without the records that a test needs the verdict is "not tested here". With too few of them to tell
(few seeds, some of the sparsities, a handful of layers, seconds of runs that shared the machine) or
within the noise it is "not decided here". See `helpers.report.evidence`.
"""

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from helpers.paths import reference_dir, replace_file
from helpers.report.evidence import (
    FAILS,
    HOLDS,
    LEVEL,
    OPEN,
    SEEDED,
    UNTESTED,
    Claim,
    ModelResults,
    decide,
    holm,
    p_value,
)
from helpers.report.labels import display_name
from helpers.report.layer_claims import FEWEST_LAYERS, LAYER_CLAIMS, MIDDLE, MOST
from helpers.report.model_claims import FEW_SEEDS, MODEL_CLAIMS, SEEDS
from helpers.report.records import Record, Records, read_records
from helpers.report.runs_table import (
    by_model,
    common_parameters,
    full_name,
    model_sentence,
)

CLAIMS = sorted(LAYER_CLAIMS + MODEL_CLAIMS)  # by their numbers
DECIDING = ("full", "beyond")  # plans whose committed records have verdicts
RULES = (
    "A problem is a layer at a sparsity, on one mask by Wanda's score (budget per matrix); what "
    f"is said of layers must be true on {100 * MOST:.0f} % of the problems, on {FEWEST_LAYERS} "
    f"layers or more; it does not hold where it is true on {100 * MIDDLE:.0f} % or fewer. That "
    "is a count of layers that were chosen, without an interval. Seconds count only of runs "
    "that had the machine to themselves. Means over seeds, paired by seed, must be on one side "
    f"of their limit by more than Student's 95 % interval (±), with at least {SEEDS} seeds at "
    f"{SEEDED}, or {FEW_SEEDS} for answers, repairs and seconds. A column of one or two draws "
    f"shows no ±; in the verdict it counts with the interval at {SEEDED}, widened for that and, "
    "for perplexities, in proportion to the damage ln(perplexity / dense). All draws are of one "
    "pool of text and share some of it, so ± is a little too small. A claim of several columns "
    "holds if all of them are above their limit (so its p is the largest), and does not hold if "
    "one is below (the smallest, times their number: Bonferroni). p is corrected, by Holm's "
    f"method, for the number of claims of this page that rest on intervals: above {LEVEL:g} a "
    "claim is not decided. ± is not corrected."
)
DIRECTIONS = {
    HOLDS: "yes: ",
    FAILS: "**no**: ",
}  # where the runs of another model point
NO_DISAGREEMENT = "| – | nothing | – | – | – |"


class ClaimVerdict(NamedTuple):
    """What the records of a model say of a claim."""

    claim: Claim
    verdict: str  # HOLDS, FAILS, OPEN or UNTESTED of `helpers.report.evidence`
    numbers: str
    points: str  # what the verdict would be without noise

    @property
    def main_number(self) -> str:
        """The number that a table of claims shows."""
        return self.numbers.partition(";")[0]


def claim_verdicts(
    records: Records, claims: Sequence[Claim] = CLAIMS
) -> list[ClaimVerdict]:
    """What the records of one model say of each claim, in the order of `claims`."""
    results = ModelResults(records)
    tested = {claim: claim.test(results) for claim in claims}
    chances = holm({claim: p_value(own.margins) for claim, own in tested.items()})
    verdicts = []
    for claim, (margins, numbers) in tested.items():
        verdict = decide(margins)
        if claim in chances:
            numbers += f"; p = {chances[claim]:.2g}"
            if verdict in (HOLDS, FAILS) and chances[claim] > LEVEL:
                numbers += f", by itself it {verdict}"
                verdict = OPEN
        numbers = re.sub(r"(?<![\w.])-(?=\d)", "−", numbers)  # as wide as a plus
        noiseless = [(each.mean, 0.0) for each in margins if each.mean == each.mean]
        verdicts.append(
            ClaimVerdict(claim, verdict, display_name(numbers), decide(noiseless))
        )
    return verdicts


def count_verdicts(verdicts: Sequence[ClaimVerdict]) -> str:
    """How many claims hold, do not hold and are open, and how many of those are the paper's."""
    counts = []
    for chosen in ((HOLDS, FAILS, OPEN), (HOLDS,), (FAILS,), (OPEN,)):
        found = [own.claim.sentence for own in verdicts if own.verdict in chosen]
        counts += [len(found), sum("not in the paper" not in each for each in found)]
    return (
        "Of {} claims ({} of the paper), {} ({}) hold, {} ({}) do not, and {} ({}) are not decided "
        "here."
    ).format(*counts)


# ------------------------------------------------------------------ the page


def claims_markdown(records: Records, tables: Path, page: Path | None = None) -> str:
    """The verdicts on the records of one model, each with its main number and a link to its table.

    Then how each was tested, with all numbers, and which claims these records do not test. A column
    says where the runs of another model point (`_second_model`). Of records that decide nothing,
    only what points another way than the committed ones of `full` and `beyond`.
    Args: tables, the folder of the tables; page, where links start, by default there.
    """
    records = list(records)
    page = page or tables
    verdicts = claim_verdicts(records)
    decided = any(own.verdict in (HOLDS, FAILS) for own in verdicts)
    text = f"{model_sentence(records)} ± is half of a 95 % interval."
    second = ""
    if decided:
        printed = verdicts
        text += f" {count_verdicts(verdicts)}"
        second, pointers = _second_model(records)
        if second:
            text += (
                f" The runs on {second} are too few to decide a claim: shown is where they "
                "point."
            )
    else:
        pages = (claim_verdicts(_committed(plan)) for plan in DECIDING)
        printed = [
            other if own.verdict == UNTESTED else own
            for own, other in zip(*pages, strict=True)
        ]
        text += (
            " These runs are too few to decide a claim: verdicts are those of "
            f"{' and '.join(_committed_pages(page))}."
            " Shown is where the numbers of these runs point the other way."
        )
    rows = []
    tests = []
    untested = defaultdict(list)
    for own, other in zip(verdicts, printed, strict=True):
        number, sentence, how, name, _ = own.claim
        if decided and own.verdict == UNTESTED:
            untested[own.main_number].append(str(number))
        elif decided or {own.points, other.points} == {HOLDS, FAILS}:
            row = [str(number), sentence, f"**{other.verdict}**", own.main_number]
            if second:
                row.append(pointers[number])
            link = os.path.relpath(tables / f"{name}.md", page)
            rows.append(f"| {' | '.join([*row, f'[{name}]({link})'])} |")
            tests.append(f"{number}. {how} *{own.numbers}.*")
    heads = ["#", "claim", "verdict", "number", "evidence"]
    if second:
        heads.insert(4, f"on {second}")
    lines = [
        text,
        "",
        f"| {' | '.join(heads)} |",
        f"| --: {'| :-- ' * (len(heads) - 1)}|",
        *(rows or [NO_DISAGREEMENT]),
        "",
        f"How each was tested. {RULES}",
        "",
        *tests,
    ]
    if untested:
        parts = [f"{', '.join(numbers)} ({why})" for why, numbers in untested.items()]
        lines += ["", f"Not tested by these records: {'; '.join(parts)}."]
        lines += ["", f"The committed pages: {', '.join(_committed_pages(page))}."]
    return "\n".join(lines) + "\n"


def _committed(plan: str) -> list[Record]:
    """The committed records of a plan."""
    return read_records(reference_dir(plan) / "records")


def _committed_pages(page: Path) -> list[str]:
    """Links to the committed pages of claims, from the folder of another page."""
    paths = {plan: reference_dir(plan) / "tables" / "claims.md" for plan in DECIDING}
    return [f"[{plan}]({os.path.relpath(to, page)})" for plan, to in paths.items()]


def _second_model(records: list[Record]) -> tuple[str, dict[int, str]]:
    """The model of the plan `second`, and by claim whether its committed runs point to it.

    With the number; "–" for a claim that they do not test. ("", {}) if there are no such records,
    or `records` are of that model.
    """
    others = _committed("second")
    model = common_parameters(others).get("model")
    if not others or model == common_parameters(records).get("model"):
        return "", {}
    pointers = defaultdict(lambda: "–")
    for other in claim_verdicts(others):
        if other.points in DIRECTIONS:
            pointer = DIRECTIONS[other.points] + other.main_number
            pointers[other.claim.number] = pointer
    name, _, _ = full_name("model", model).partition(" (")
    return name, pointers


def write_claims(records: Records, folder: str | Path) -> list[Path]:
    """Write claims.md, a section for each model, into the folder of the tables; return its path.

    Raises FileError if the folder cannot be written.
    """
    texts = [claims_markdown(runs, Path(folder)) for runs in by_model(records).values()]
    path = Path(folder) / "claims.md"
    return [replace_file(path, "\n".join(texts))] if texts else []
