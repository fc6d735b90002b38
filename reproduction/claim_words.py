"""Verdicts and numbers of claims in words, for the pages that show them."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pandas as pd

from helpers.explore.names import display_name
from helpers.paths import ZERO_SHOT_NOTEBOOK
from reproduction.claim_draws import QUANTITIES
from reproduction.claims import (
    ALONE,
    FAILS,
    HOLDS,
    LEVEL,
    MANY,
    NEGLIGIBLE,
    OPEN,
    OURS,
    UNTESTED,
    Mean,
    draws_needed,
    holm,
)
from reproduction.markdown import listed, text_table
from reproduction.pipelines import BASE

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
PLAINLY = "plainly"
RESERVED = "with a reservation"
JUST = "only just"
HERE = "for these windows only"


# ------------------------------------------------------------------ how many claims hold


def by_kind(
    verdicts: pd.DataFrame, ours: bool
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """The paper's claims or ours that have runs, and the same by a kind of `COUNTED`."""
    own = verdicts[(verdicts["n"] > 0) & ((verdicts["source"] == OURS) == ours)]
    # what was only not timed alone is a kind of its own
    shared = (own["verdict"] == UNTESTED) & (own["lacks"] == ALONE)
    kind = own["verdict"].mask(shared, ALONE)
    return own, {each: own[kind == each] for each in COUNTED if (kind == each).any()}


def headline(verdicts: pd.DataFrame) -> str:
    """How many claims hold: "Of the paper's 14 claims 11 hold, 3 are undecided and none ..."."""
    sentences = []
    for owner, ours in ((THE_PAPERS, False), (ADDED, True)):
        own, kinds = by_kind(verdicts, ours)
        if own.empty:
            continue
        parts = [
            f"{len(these)} {COUNTED[kind][int(len(these) > 1)]}"
            for kind, these in kinds.items()
        ]
        if FAILS not in kinds:
            parts.append("none is refuted")
        read = "" if ours else ", as we read them,"
        text = f"{owner.format(len(own))}{read} {listed(parts)}."
        sentences.append(f"{text[:1].upper()}{text[1:]}")
    return " ".join(sentences)


def counts_table(verdicts: pd.DataFrame, barely: Sequence[int] = ()) -> str:
    """A table of how many claims hold, how firmly, and so on: of the model, of layers, and ours."""
    shown = verdicts[verdicts["n"] > 0]
    ours, layers = shown["source"] == OURS, shown["at"] == ""
    rows = {
        "the paper's {} on the whole model": shown[~ours & ~layers],
        "the paper's {} on single layers": shown[~ours & layers],
        "our {}": shown[ours],
    }
    kinds: dict[str, dict[str, Sequence[int]]] = {}
    for label, own in rows.items():
        cells = {f"hold {way}": [] for way in (PLAINLY, RESERVED, JUST)}
        for way, numbers in how_sure(own.query("verdict == @HOLDS"), barely).items():
            cells[f"hold {way if way in (PLAINLY, RESERVED) else JUST}"] += [*numbers]
        for kind in (OPEN, FAILS, UNTESTED):
            cells[COUNTED[kind][1].removeprefix("are ")] = [
                *own.query("verdict == @kind")["number"]
            ]
        kinds[label] = cells
    heads = [
        head
        for head in next(iter(kinds.values()))
        if head == COUNTED[FAILS][1] or any(cells[head] for cells in kinds.values())
    ]
    table = [
        [label.format(len(rows[label])), *(_counted(cells[head]) for head in heads)]
        for label, cells in kinds.items()
        if len(rows[label])
    ]
    return text_table(["claims (which)", *heads], table)


def _counted(numbers: Sequence[int]) -> str:
    """So many claims, and which: "2 (6 and 15)"."""
    return f"{len(numbers)} ({numbers_of(sorted(numbers))})" if numbers else "–"


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
                    f"{len(each)} {way} ({numbers_of(each)})"
                    for way, each in how.items()
                )
                kinds.append(f"{text}: {listed([*parts])}")
            else:
                way = "".join(f", {way}" for way in how if way != PLAINLY)
                kinds.append(f"{text} ({numbers_of(these['number'])}{way})")
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


def numbers_of(numbers: Iterable[int]) -> str:
    """Claims by their numbers alone: "6 and 15"."""
    return listed(list(map(str, numbers)))


def named(numbers: Sequence[int] | pd.Series) -> str:
    """Claims by their numbers: "claim 6", "claims 6 and 15"."""
    return f"claim{'s' * (len(numbers) > 1)} {numbers_of(numbers)}"


# ------------------------------------------------------------------ verdicts


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
    others = (
        f"{verdict} at {columns_in_words(at)}" for verdict, at in by_verdict.items()
    )
    return "; ".join([f"**{why}** at {columns_in_words(missing)}", *others])


def columns_in_words(columns: Sequence[str]) -> str:
    """Columns in words: "50, 70 % and 2:4"."""
    sparsities = [at.removesuffix(" %") for at in columns if at.endswith(" %")]
    words = [f"{', '.join(sparsities)} %"] if sparsities else []
    return " and ".join([*words, *(at for at in columns if ":" in at)])


def is_assumed(source: str) -> bool:
    """Whether a claim's direction is ours: its only source is a table that we could not read."""
    return source.startswith("table")


def remarks(row: Any, rows: pd.DataFrame) -> Iterator[str]:
    """What a reader of a claim's number should know: reservations, reasons, and other numbers."""
    if row.verdict == OPEN:
        yield from _undecided(row, rows)
    if row.remark:
        yield row.remark
    if row.verdict == UNTESTED:
        yield f"needs {needs_in_words(rows)}"
    if row.verdict in (FAILS, OPEN) and len(row.columns) > 1:
        yield _sides(row)
    yield from _also(row, rows)
    if is_assumed(row.source):
        yield "its direction is assumed"
    if row.windows_only:
        yield "other evaluation windows might change the verdict"
    if row.note:
        yield row.note


def _sides(row: Any) -> str:
    """What each column says, those apart that other windows may change.

    "no at 60, 70, 80 %; open at 50 % and 2:4 once ± over windows counts, too"
    """
    sides: dict[str, list[str]] = {}
    for at, verdict in row.columns.items():
        if verdict in SIDE and at not in row.near:  # or has too few runs
            sides.setdefault(SIDE[verdict], []).append(at)
    texts = [f"{side} at {columns_in_words(at)}" for side, at in sides.items()]
    text = ", ".join(texts)
    if row.near:
        near = columns_in_words(row.near)
        text = f"{text}; open at {near} once ± over windows counts, too"
    return text.removeprefix("; ")


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
    none = ", but the tasks have too few questions for them: it stays open" * asked
    yield f"{about} samples would {decide}{none}"


def _also(row: Any, rows: pd.DataFrame) -> Iterator[str]:
    """The other numbers of a claim that rests on several quantities."""
    own = rows[rows["decides"] & (rows["lacks"] == "")]
    if not row.at or row.verdict == UNTESTED or own["quantity"].nunique() == 1:
        return
    for each in own.drop(index=row.main).itertuples():
        words = "" if each.quantity == row.quantity else QUANTITIES[each.quantity].words
        yield f"also {f'{words} {number_in_words(each)}'.strip()}, at {each.at}"


def needs_in_words(rows: pd.DataFrame) -> str:
    """What a claim lacks to be tested."""
    needed = rows[rows["needed"] & rows["decides"] & (rows["lacks"] != "")]
    # what has no run at all against one rival is named once
    needed = needed.sort_values("n", kind="stable").drop_duplicates("at")
    needs = needed.groupby("lacks", sort=False)["at"]
    return "; ".join(
        f"{lacks} at {columns_in_words(list(at))}".removesuffix(" at ")
        for lacks, at in needs
    )


def points_nowhere(row: Any) -> str:
    """Why runs point neither way."""
    return ALONE_ONLY if row.lacks == ALONE else TOO_CLOSE


def points_to(row: Any, rows: pd.DataFrame) -> str:
    """Where runs point that decide nothing: "suggests yes: perplexity −20.3 % against ADMM1"."""
    pointing = f"suggests {POINTS[row.points]}" if row.points else points_nowhere(row)
    return f"{pointing}: {main_number(row, rows)}"


# ------------------------------------------------------------------ numbers


def main_number(row: Any, rows: pd.DataFrame) -> str:
    """The numbers of the column that `judge_claims` shows of a claim, or of its layer problems.

    Of a claim that is not decided all numbers of that column.
    """
    if not row.at:
        return _on_layers(row, rows)
    own = rows.loc[[row.main]]
    if row.verdict == UNTESTED:
        own = rows[(rows["at"] == row.at) & rows["decides"] & (rows["n"] > 0)]
    elif row.verdict == OPEN:
        own = rows[(rows["at"] == row.at) & rows["decides"] & (rows["lacks"] == "")]
        own = own[own["quantity"] == row.quantity]
    numbers: dict[str, dict[str, None]] = {}  # by their words, in order
    for each in own.itertuples():
        words = QUANTITIES[each.quantity].words
        numbers.setdefault(words, {})[number_in_words(each)] = None
    texts = [f"{words} {listed([*found])}" for words, found in numbers.items()]
    text = f"{', '.join(texts)}, at {row.at} ({samples(row.n)})"
    decisive = rows[rows["decides"] & (rows["lacks"] == "")]
    alike = decisive["quantity"].nunique() == 1 and not decisive["limit"].any()
    if row.verdict == HOLDS and alike and len(decisive) > 1:
        text += f": the smallest of {len(decisive)} differences"
    return text


def _on_layers(row: Any, rows: pd.DataFrame) -> str:
    """On how many layer problems a claim is true, of what it is contrasted with too, the median."""
    (main,) = rows.loc[[row.main]].itertuples()
    quantity = QUANTITIES[main.quantity]
    text = count_in_words(main)
    contrast = rows[
        rows["quantity"].str.startswith(f"{main.quantity},") & (rows["met"] != "")
    ]
    for each in contrast.itertuples():
        text += f"; {each.met} on {each.right:.0f}"
    if main.middle:
        middle = "in the median " * (main.n > 1)
        text += f"; {middle}{main.middle.format(quantity.show(main.median))}"
    return text


def samples(n: int) -> str:
    """So many samples."""
    return "1 sample" if n == 1 else f"{n} samples"


def limit_in_words(row: Any) -> str:
    """What must be true of a number: "below 0", "at most +25.0 %"."""
    if not row.limit:
        return "above 0" if row.side > 0 else "below 0"
    side = "above" if row.side > 0 else "below" if row.strict else "at most"
    return f"{side} {QUANTITIES[row.quantity].show(row.limit)}"


def count_in_words(row: Any) -> str:
    """On how many layer problems a condition is met: "above 1 on 32 of 32 problems"."""
    text = f"{row.met or limit_in_words(row)} on {row.right:.0f} of {row.n} problem"
    text += "s" * (row.n != 1)
    if row.unknown:
        text += f", not known on {row.unknown:.0f}"
    return text + _shared(row)


def rival_in_words(row: Any) -> str:
    """What the number of a row of `evidence` is compared with, if its unit does not say so."""
    if not row.against or row.quantity in ("closed", "times"):
        return ""
    if row.of.startswith(f"{row.against} ("):
        own = "" if row.against == BASE else f"of {display_name(row.against)} "
        return f"{own}with `{row.of.removeprefix(row.against).strip(' ()')}`"
    return f"against {display_name(row.against).partition(',')[0]}"


def signed_number(row: Any) -> str:
    """The number of a row of `evidence` about a model: "−28 ± 3 %"."""
    return QUANTITIES[row.quantity].show(row.mean, row.half) + _shared(row)


def _shared(row: Any) -> str:
    """What seconds that decide nothing for that reason are followed by."""
    return " (on a shared machine)" if row.lacks == ALONE else ""


def number_in_words(row: Any) -> str:
    """The number of a row of `evidence` with its side in words: "28 ± 3 % below SparseGPT's"."""
    beside = rival_in_words(row)
    number = QUANTITIES[row.quantity].show(row.mean, row.half)
    sign = re.compile(r"[+−](?=\d)")
    signs = {*sign.findall(number)}
    if (
        not beside or len(signs) > 1
    ):  # the latter: an interval that is given by its ends
        return f"{signed_number(row)} {beside}".strip()
    bare = sign.sub("", number)
    if beside.startswith("against "):
        rival = f"{beside.removeprefix('against ')}'s"
        sides = {"−": f"{bare} below {rival}", "+": f"{bare} above {rival}"}
        level = f"level with {rival} ({bare})"
    else:  # with an option
        sides = {"−": f"{bare} lower {beside}", "+": f"{bare} higher {beside}"}
        level = f"unchanged ({bare}) {beside}"
    return (sides[signs.pop()] if signs else level) + _shared(row)


def over_windows(row: Any) -> str:
    """± of a row of `evidence` over the evaluation windows, "" where no record keeps these."""
    if not row.windows:
        return ""
    return f"± {QUANTITIES[row.quantity].show(0.0, row.window_half).partition('± ')[2]}"


def show_mean(row: Any, mean: Mean) -> str:
    """A mean of draws in the unit of a row of `evidence`."""
    return QUANTITIES[row.quantity].show(mean.mean, mean.half)
