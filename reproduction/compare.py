"""The verdict: what was measured here, compared with the committed record of the same run.

Both records are flattened to {path: value}; RULES says how far a value may differ, by its path and
by the kind of run. *On the same kind of machine* (processor, device, threads, and versions of the
packages that compute) a run repeats itself: numbers agree to SAME; masks, tokens and answers are
equal. *On another machine* rounding differs. It moves weights across a mask's edge, which a gradual
mask and the blocks that follow amplify. In the first blocks it is still tiny, and a broken solver
shows there, so their layers are held tightly. Later layers, and a perplexity, whose limit is a
share of the damage ln(perplexity / dense), may differ by what rounding does, by method.

Where the limits come from (tests/processors.json): 78 pairs of records that differ in rounding
alone. 53 are of two kinds of x86 processor, 44 runs of `laptop` and `second` and nine of earlier
code; 25 are `laptop` with kernels for AVX2 beside those for AVX-512 on one processor. The limits
were chosen after these pairs were seen. SparseGPT's was 4 % before the 25, of which one went beyond
it. The largest differences there are, of the damage, 1.1 % (Wanda), 0.14 % (ADMM1), 4.5 %
(SparseGPT), 2.2 % (ADMM-Grad), 4.8 % (ALPS) and 5.5 % (the recipe). Of a layer's error, in the 53,
they are 0.10 % in block 0 (0.17 % with a guide), 0.8 % in block 1, 5.3 % up to block 7 and 18 %
after it; 1.3 % of the median and 1.2 % of the mean error. What moves block 0 by less may pass on
another machine. Notebook 09, on two windows, moved by 2.4 % of the damage, and its int8 copy by
2.9 %; no record has their dense model, so UNKNOWN is their limit, of the perplexity.

25 pairs of `laptop` were seen after the limits were set, and all are within them: an Intel Xeon of
family 6, model 167, beside AMD EPYC of family 25. They are a weaker test than that sounds. In 20
runs both sides have the very digits of a pair above: these processors round as those two kinds do.
The other five (notebooks 01, 02, 03 and two of 05) are new. No ARM, and no GPU, was at hand.

The chance that an answer turns comes from 13 pairs of zero-shot records: 624 of 6,000
(ADMM-Grad, 228 of 2,000 in one run), 562 of 6,000 (SparseGPT), 120 of 6,000 (Wanda), 133 of 2,000
(the recipe), none of 2,000 (dense), and of `laptop` 3 and 0 of 36.
"""

import functools
import itertools
import math
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from scipy import stats

from helpers.explore.names import display_name
from helpers.paths import ZERO_SHOT_NOTEBOOK
from reproduction.labels import run_title
from reproduction.markdown import format_number, listed
from reproduction.records import Record, Records, record_id
from reproduction.runs import (
    PRUNE_NOTEBOOK,
    of_notebook,
    over_seeds,
    perplexity_runs,
    processor_of,
)
from reproduction.tables import accuracy_table

EQUAL = 1e-13  # Python 3.12 adds floats more exactly than 3.11
NO_DIGIT = 5e-4  # is printed as 0.0 %
SAME = 1e-3
ROUNDING = 1e-4
CEILING = 0.15  # no perplexity may differ by more
LEAST_DAMAGE = 0.1  # a mask may flip even where pruning costs nothing
UNKNOWN = 0.05  # of a perplexity whose dense model is not known
MEDIAN = 0.02  # of the errors of all layers
RARE = 1e-3  # the chance that an honest run has more answers turned than are allowed
CLOSE = 2.0  # times a limit: another kind of processor may exceed it by so much
SMALL = 1e-5  # a smaller number is compared as if it were as large as this
NOT_JUDGED = ("s", "min", "h", "bytes", "MB", "MiB", "GB", "GiB")
# what two perplexities must have in common to be compared with one dense model
MEASURED_ON = ("model", "revision", "evaluation", "window", "windows", "dtype")
COUNTED = ("mask", "answers", "normalised")
KINDS = {  # of comparisons, for a person
    "metrics": "results of runs",
    "tokens": "texts",
    "error": "errors of layers",
    "rows": "rows of layer studies",
    "mask": "masks",
    "answers": "answers",
    "normalised": "normalised answers",
}
COMPUTING = ("torch", "transformers", "tokenizers", "numpy", "lm-eval")  # packages
# the main metric of each notebook, and what it is called
MAIN = {
    "perplexity": "perplexity",
    "perplexity_admm-grad": "perplexity",
    "mean_acc": "mean accuracy",
    "error_admm": "relative error of the layer",
    "paper_unstructured": "error, gradual over one-shot mask:",
    "condition_q_proj": "condition number of q_proj's Gram matrix",
    "records": "records",
}
# the runs of README's column with its first calibration sample, and the command that makes them
ONE_SAMPLE = "*-60 04*dense"
CHECKS_README = f"make reproduce PLAN=full ONLY='{ONE_SAMPLE}'"
OF_README = "README's table is made of its records at 60 %. No claim is decided here."
NOT_OF_README = (
    "It checks our records, not the paper's tables. Not checked: README's table, of the plan full "
    f"({CHECKS_README} checks one of its samples). No claim is decided here."
)
NOT_THE_PAPER = "(This does not test the paper's own tables.)"
IN_WORDS = {  # metrics whose names say too little
    "perplexity_int8": "the perplexity with 8-bit weights",
    "perplexity_read_back": "the perplexity of the saved model",
    "perplexity_web": "the perplexity on C4",
    "perplexity_layers": "the perplexity before the repair",
    "divergence_before": "the divergence before the repair",
    "mean_layer_error": "the mean error of layers",
}
FOLDED = 0.01  # comparisons that use less of what is allowed are a line together
WIDTH = 100  # of what is printed
HEADS = ("run", "what", "here", "ours", "apart", "allowed", "used", "agrees")
DAMAGE = " (damage)"  # behind a limit: the legend says what it means
LEGEND = """\
used: share of what is allowed, largest first. Where limits come from: docs/glossary.md, Verdict
(damage): what is allowed was a share of ln(perplexity / dense), turned into % of the perplexity.
error/B/L: of layer L in block B, the furthest of n. error, median: of here / ours over all layers.
mask, answers, normalised (answers by length-normalised likelihood): how many are equal, of n."""
BUT_CLOSE = "NO, but close: another kind of processor may do that."


@dataclass(frozen=True)
class Rule:
    """How far the values under some paths may differ; of several rules the first counts.

    The values of a rule are one comparison, the furthest of them, except metrics and tokens. Of
    COUNTED it is the part of them that differs, and `limit` the chance that one does.
    """

    paths: str
    when: str  # words that must all be among a run's `traits`
    limit: float | None  # a fraction; None: not judged
    damage: bool = False  # a share of it: see `damage_limit`


@dataclass(frozen=True)
class Comparison:
    """One value of a run, or the furthest of several, or how many are equal, and its reference."""

    run: str
    what: str
    here: Any  # None if it is missing
    reference: Any
    difference: float  # signed, relative; infinite for a missing value and unequal text
    limit: float
    damage: bool = False  # the limit is a share of it
    same: bool = False  # on the same kind of machine
    kind: str = ""  # the first part of its path: one of KINDS

    @property
    def within(self) -> bool:
        """Whether the run is reproduced, as far as this goes."""
        return abs(self.difference) <= self.limit

    @property
    def used(self) -> float:
        """The difference, as a part of the limit."""
        return abs(self.difference) / max(self.limit, EQUAL)


@dataclass(frozen=True)
class Verdict:
    """Every comparison of a plan, nearest to its limit first, and how many runs agree."""

    comparisons: list[Comparison]
    compared: int  # committed runs, those without a record here among them
    reproduced: int
    without: int  # run here, without a reference
    machines: dict[str, dict[str, tuple]]  # by run that is here: `machine_differences`
    # by run, the record here and the committed one
    pairs: dict[str, tuple[Record, Record]]
    committed: dict[str, Record]  # by run

    @functools.cached_property
    def titles(self) -> dict[str, str]:
        """What the committed runs are called."""
        return {
            run: run_title(run, record["parameters"])
            for run, record in self.committed.items()
        }


def judge(records: Records, reference: Records, plan: Sequence[Record]) -> Verdict:
    """Compare the records made here with the committed records of the same runs (`same_run`).

    A committed run that has no record here counts as compared and not reproduced, a record without
    a committed one as without. `plan` are all committed records of the plan, for its dense
    models.
    """
    here = {record_id(record): record for record in records}
    committed = {record_id(record): record for record in reference}
    items = []
    machines = {}
    for run, expected in committed.items():
        if run in here:
            machines[run] = machine_differences(here[run], expected)
            items += compare(here[run], expected, plan, same=not machines[run])
        else:
            items.append(Comparison(run, "record", None, "", math.inf, 0.0))
    apart = {item.run for item in items if not item.within}
    return Verdict(
        sorted(items, key=lambda item: -item.used),
        compared=len(committed),
        reproduced=len(committed) - len(apart),
        without=len(here.keys() - committed.keys()),
        machines=machines,
        pairs={run: (here[run], committed[run]) for run in machines},
        committed=committed,
    )


def same_run(record: Record, reference: Record, defaults: Mapping[str, Any]) -> bool:
    """Whether two records have the same notebook and parameters; the device may differ.

    A parameter that the notebook has gained since the reference was made counts there with the
    value in `defaults`.
    """
    here = record["parameters"] | {"device": None}
    there = reference["parameters"] | {"device": None}
    gained = {key: value for key, value in defaults.items() if key in here}
    return record["notebook"] == reference["notebook"] and here == gained | there


def machine_differences(record: Record, reference: Record) -> dict[str, tuple]:
    """What may make two records round differently, here and there: {} on the same kind of machine.

    What one of them does not name is not compared, except the processor: an unknown one equals no
    other.
    """
    there = machine(reference)
    return {
        key: (here or "unknown", there[key] or "unknown")
        for key, here in machine(record).items()
        if (here != there[key] if here and there[key] else key == "processor")
    }


def machine(record: Record) -> dict[str, Any]:
    """What decides how a record was rounded; None or "" for what it does not name."""
    versions = record.get("versions", {})
    return {
        "processor": processor_of(record),
        "device": record.get("device"),
        # halved where memory ran out
        "batch": (record.get("series") or {}).get("batch"),
        # without the label of a build: 2.13.0+cpu is on a processor what 2.13.0 is
        **{name: versions.get(name, "").partition("+")[0] for name in COMPUTING},
    }


# ------------------------------------------------------------------ one run


def compare(
    record: Record, reference: Record, plan: Sequence[Record], same: bool
) -> Iterator[Comparison]:
    """The comparisons of one run; `same`: on the same kind of machine."""
    run = record_id(reference)
    here = flatten(record)
    there = flatten(reference)
    words = traits(reference) | ({"same"} if same else set())
    rules = [rule for rule in RULES if words.issuperset(rule.when.split())]
    groups = defaultdict(dict)  # of differences, by path
    for path, value in there.items():
        rule = next((each for each in rules if fnmatchcase(path, each.paths)), None)
        if rule and rule.limit is not None:
            kind, _, name = path.partition("/")
            alone = name if kind in ("metrics", "tokens") else ""
            groups[rule, kind, alone][path] = difference(here.get(path), value)
    errors = []  # of all layers
    for (rule, kind, name), apart in groups.items():
        number = len(apart)
        path = max(apart, key=lambda each: abs(apart[each]))
        what = name or f"{path}, of {number}"
        values = here.get(path), there[path], apart[path]
        limit = rule.limit
        dense = None
        if rule.damage:
            dense = dense_perplexity(name, reference, plan)
            limit = damage_limit(limit, dense, there[path])
        limit = reference["metrics"].get(name, {}).get("tolerance", limit)
        if kind in COUNTED:
            what = f"{kind} of {number}"
            equal = list(apart.values()).count(0.0)
            values = equal, number, (equal - number) / number
            limit = stats.binom.isf(RARE, number, limit) / number
        if kind == "error":
            errors += apart.values()
        yield Comparison(run, what, *values, limit, dense is not None, same, kind)
    if errors and not same:
        median = np.median(errors)
        values = 1 + median, 1.0, median, MEDIAN
        yield Comparison(run, "error, median", *values, kind="error")


def flatten(record: Record) -> dict[str, Any]:
    """All of a record that may be compared, by path; without what is None or ""."""
    series = record.get("series") or {}
    scores = series.get("zero_shot", {})
    flat = {}
    for metric, entry in record["metrics"].items():
        # accuracies, which carry a tolerance, are judged by their items
        if entry["unit"] not in NOT_JUDGED and not (scores and "tolerance" in entry):
            flat[f"metrics/{metric}"] = entry["value"]
    for text, identity in (record["data"] or {}).items():
        if isinstance(identity, Mapping):
            flat[f"tokens/{text}"] = identity.get("tokens")
    for layer in record.get("layers") or ():
        for kind in ("error", "mask"):
            flat[f"{kind}/{layer['block']}/{layer['name']}"] = layer.get(kind)
    for name in ("update", "ablation"):  # tables are made of these rows
        for place, row in enumerate(series.get(name) or ()):
            flat |= {f"rows/{name}/{place}/{key}": row[key] for key in row}
    for task, score in scores.items():
        # whether it was right, and which it was: two wrong ones may differ
        answers = zip(score["acc"], series["answers"][task], strict=True)
        normalised = score.get("acc_norm") or [None] * len(score["acc"])
        values = zip(score["items"], answers, normalised, strict=True)
        for item, answer, right in values:
            flat[f"answers/{task}/{item}"] = answer
            flat[f"normalised/{task}/{item}"] = right
    return {path: value for path, value in flat.items() if value not in (None, "")}


def traits(reference: Record) -> set[str]:
    """What decides how far rounding moves a run: the words of `Rule.when` but "same"."""
    parameters = reference["parameters"]
    words = {parameters.get("dtype", "float32")}
    if parameters.get("allocation") or parameters.get("effort"):
        words.add("guided")
    elif not parameters.get("repair"):
        words.add(parameters.get("method"))
    # known to have read no calibration text
    if reference["data"] is not None and "calibration" not in reference["data"]:
        words.add("no-text")
    return words


def difference(here: Any, there: Any) -> float:
    """The relative difference of two numbers; of text and whole numbers 0 or infinite."""
    if isinstance(there, float) and isinstance(here, int | float):
        return (here - there) / max(abs(there), SMALL)
    return 0.0 if here == there else math.inf


# ------------------------------------------------------------------ limits


def damage_limit(share: float, dense: float | None, perplexity: float) -> float:
    """A share of the damage, as a part of a perplexity; `dense` is the dense model's, if known."""
    if dense is None:
        return UNKNOWN
    damage = max(math.log(perplexity / dense), LEAST_DAMAGE)
    return min(math.expm1(share * damage), CEILING)


def dense_perplexity(
    metric: str, reference: Record, plan: Sequence[Record]
) -> float | None:
    """The dense model's perplexity on the text of a metric; None if no record has it."""
    text = metric.removesuffix("_layers")
    # of a run that measures it too, as those of notebooks 08 and 00 do
    for name in (f"{text}_dense", "perplexity_dense"):
        if name in reference["metrics"]:
            return reference["metrics"][name]["value"]
    alike = {name: reference["parameters"].get(name) for name in MEASURED_ON}
    alike["method"] = "dense"
    for record in plan:
        parameters = {name: record["parameters"].get(name) for name in alike}
        if parameters == alike and text in record["metrics"]:
            return record["metrics"][text]["value"]
    return None


RULES = (
    Rule("metrics/sparsity", "", EQUAL),
    Rule("metrics/*", "no-text float32", ROUNDING),
    Rule("metrics/*", "same", SAME),
    # notebooks 00 and 08 measure their dense model, and magnitude, too
    Rule("metrics/*_dense", "float32", ROUNDING),
    Rule("metrics/*_magnitude", "float32", ROUNDING),
    # of the damage, by method; the last is of SparseGPT, ALPS and what is guided or trained
    Rule("metrics/perplexity*", "wanda", 0.015, damage=True),
    Rule("metrics/perplexity*", "admm1", 0.005, damage=True),
    Rule("metrics/perplexity*", "admm-grad", 0.04, damage=True),
    Rule("metrics/perplexity*", "", 0.075, damage=True),
    Rule("metrics/divergence*", "", 0.075),  # itself a kind of damage
    Rule("metrics/*", "", 0.02),
    Rule("tokens/*", "", EQUAL),
    Rule("error/*", "same", SAME),
    # gradients and OWL, which round too, have chosen the sparsities
    Rule("error/0/*", "guided", 5e-3),
    Rule("error/0/*", "", 1.5e-3),
    Rule("error/1/*", "", 2e-2),
    Rule("error/[2-7]/*", "", 0.15),
    Rule("error/*", "", 0.5),
    Rule("mask/*", "same", 0.0),
    Rule("mask/*", "no-text", 0.0),
    Rule("rows/*/seconds", "", None),
    Rule("rows/*", "same", SAME),
    Rule("answers/*", "same", 0.0),
    Rule("answers/*", "no-text float32", 0.0),
    Rule("answers/*", "wanda", 0.03),
    Rule("answers/*", "", 0.15),
    Rule("normalised/*", "same", 0.0),
)


# ------------------------------------------------------------------ in words


def main_number(record: Record) -> tuple[str, float] | None:
    """The name and value of the main number of a record; None if it has none."""
    for metric, name in MAIN.items():
        if metric in record["metrics"]:
            return name, record["metrics"][metric]["value"]
    return None


def verdict_summary(verdict: Verdict, plan: str) -> str:
    """For a person: how many runs agree, how far numbers differ and where, and on which machine.

    And what that says of README's numbers and of claims: nothing, but for the plan full's numbers.

    The first line says whether all is well; no line is longer than WIDTH.
    """
    parts = [verdict_line(verdict), as_list(verdict_notes(verdict, plan))]
    return "\n".join(filter(None, parts))


def verdict_line(verdict: Verdict) -> str:
    """Whether all is well: how many runs reproduce the committed ones, in a line."""
    if not verdict.compared:
        return "Nothing to compare: we have no record of these runs."
    made, agree = len(verdict.machines), verdict.reproduced
    missing = verdict.compared - made
    if apart := made - agree:
        fails = "does NOT reproduce" if apart == 1 else "do NOT reproduce"
        rest = (
            f" {missing} more {'was' if missing == 1 else 'were'} not run."
            if missing
            else ""
        )
        return f"{apart} of your {made} runs {fails} ours; {agree or 'none'} {_do(agree)}.{rest}"
    if missing:
        return (
            f"Incomplete: {missing} of {verdict.compared} runs left no record here. Of the others, "
            f"{agree} of {made} reproduce ours."
        )
    if made == 1:
        return f"Your run reproduces our record of it. {NOT_THE_PAPER}"
    return f"Your {made} runs reproduce our records of them. {NOT_THE_PAPER}"


def _do(count: int) -> str:
    """The verb for so many runs."""
    return "does" if count == 1 else "do"


def verdict_notes(verdict: Verdict, plan: str) -> Iterator[str]:
    """What stands below `verdict_line`: machines, numbers, what was not checked."""
    if not verdict.compared:
        return
    if verdict.machines:
        yield " ".join(machine_and_numbers(verdict))
        yield from trouble(verdict, plan)
        yield from _nearest(verdict)
        yield from ranks(verdict)
    yield from without_a_pair(verdict)
    yield f"This was plan {plan}. {OF_README if plan == 'full' else NOT_OF_README}"
    yield f"{_unseen(verdict)} (docs/verdict.md)."
    yield from _details(verdict)


def without_a_pair(verdict: Verdict) -> Iterator[str]:
    """Which committed runs have no record here, and how many runs here have no committed one."""
    names = [title for run, title in verdict.titles.items() if run not in verdict.pairs]
    if names:
        more = ", ..." if len(names) > 3 else ""
        yield (
            f"Not run here with this code: {len(names)} ({', '.join(names[:3])}{more})."
        )
    if (count := verdict.without) and verdict.compared:
        yield (
            f"{count} more {'run has' if count == 1 else 'runs have'} no record of ours to be "
            "compared with."
        )


def as_list(sentences: Iterable[str]) -> str:
    """Sentences as a list, no line of which is longer than WIDTH."""
    fill = functools.partial(textwrap.fill, width=WIDTH, break_on_hyphens=False)
    return "\n".join(fill(f"- {each}", subsequent_indent="  ") for each in sentences)


def few_questions(records: Iterable[Record]) -> str:
    """That models answered too few questions to be told apart, "" where they did not."""
    scored = of_notebook(records, ZERO_SHOT_NOTEBOOK)
    if len(scored) < 2:
        return ""
    means, errors = (table["mean"].dropna() for table in accuracy_table(scored))
    questions = {
        sum(len(task["items"]) for task in run["series"]["zero_shot"].values())
        for run in scored
    }
    if len(questions) > 1 or np.ptp(means) >= 2 * math.hypot(*errors.nlargest(2)):
        return ""
    return (
        f"Right answers of notebook {ZERO_SHOT_NOTEBOOK[:2]} are of {questions.pop()} questions: "
        "too few to tell these models apart."
    )


def beside_the_table(records: Iterable[Record]) -> str:
    """How the numbers of other notebooks stand to the table of perplexity, "" where there are none.

    Their windows may be others, and their questions too few to tell models apart.
    """
    records = list(records)
    texts = []
    own = set(map(_windows, perplexity_runs(records)["record"]))
    others = sorted({
        run["notebook"][:2]
        for run in records
        if any("perplexity" in name for name in run["metrics"])
        and _windows(run) not in own
    })  # fmt: skip
    if own and others:
        texts.append(
            f"Perplexities of notebook{'s' * (len(others) > 1)} {listed(others)} are of other "
            "windows: do not compare them with the table."
        )
    texts.append(few_questions(records))
    return textwrap.fill(" ".join(filter(None, texts)), WIDTH)


def _windows(run: Record) -> tuple[Any, ...]:
    """The windows of a run's perplexity: how many, how long."""
    return run["parameters"].get("windows"), run["parameters"].get("window")


def machine_and_numbers(verdict: Verdict) -> list[str]:
    """On which machine the runs were made, and what of the numbers differs from ours.

    If nothing does, that is one sentence with the first.
    """
    if not verdict.pairs:
        return []
    first = " ".join(machine_lines(verdict))
    another = any(verdict.machines.values())
    perplexities, answers, others = groups = _by_group(verdict)
    if not any(map(_differing, itertools.chain(*groups))):
        how = "That may move numbers; here it did not:" if another else "They do:"
        return [f"{first} {how} {_all_equal(*groups)}."]
    within = verdict.reproduced == len(verdict.pairs)
    if another:
        how = "That may move numbers; here it moved some, all within what is allowed:"
        if not within:
            how = "That may move numbers, but some are further apart than it should move them:"
    else:
        how = "They do:" if within else "Not all do:"
    lines = [
        _perplexities_apart(perplexities, verdict.titles),
        _answers_apart(answers, verdict.titles),
        _others_apart(others),
    ]
    return [f"{first} {how}", *filter(None, lines)]


def _by_group(verdict: Verdict) -> tuple[list[Comparison], ...]:
    """The perplexities, the answers and all other comparisons of the runs that are here."""
    groups: tuple[list[Comparison], ...] = [], [], []
    for item in verdict.comparisons:
        if item.run in verdict.pairs:
            place = 0 if item.what.startswith("perplexity") else 2
            groups[1 if item.kind == "answers" else place].append(item)
    return groups


def _differing(item: Comparison) -> bool:
    """Whether the two values are not equal; a sum in another order may end in another bit."""
    return abs(item.difference) > EQUAL


def _differ(count: int) -> str:
    """The verb for so many numbers."""
    return "differs" if count == 1 else "differ"


def _all_equal(
    perplexities: Sequence[Comparison],
    answers: Sequence[Comparison],
    others: Sequence[Comparison],
) -> str:
    """That nothing differs, in a clause that counts perplexities and answers."""
    questions = sum(item.reference for item in answers)
    parts = []
    if count := len(perplexities):
        parts.append(f"all {count} perplexities" if count > 1 else "the perplexity")
    if questions:
        parts.append(f"all {questions:,} answers")
    if others:
        parts.append("all other numbers" if parts else "all numbers")
    verb = "is" if parts == ["the perplexity"] else "are"
    return f"{listed(parts)} {verb} equal"


def _perplexities_apart(items: Sequence[Comparison], titles: Mapping[str, str]) -> str:
    """How many perplexities differ, and how far; "" if there are none at all."""
    apart = [item for item in items if _differing(item)]
    if not apart:
        return f"All {len(items)} perplexities are equal." if items else ""
    shown = ", of which tables show some," * (len(items) > 1)
    text = f"{len(apart)} of {len(items)} perplexities{shown} {_differ(len(apart))} from ours"
    found = [item for item in apart if math.isfinite(item.difference)]
    if not found:  # they are missing
        return f"{text}."
    worst = max(found, key=lambda item: abs(item.difference))
    by = _percent(worst.difference)
    if len(found) > 1:
        by = f"at most {by}"
    values = f"{format_number(worst.here)}, ours {format_number(worst.reference)}"
    allowed = f"up to {_percent(worst.limit)} allowed"
    return f"{text}, by {by} ({titles[worst.run]}: {values}; {allowed})."


def _answers_apart(items: Sequence[Comparison], titles: Mapping[str, str]) -> str:
    """How many answers to the tasks differ, and where most; "" if there are none at all."""
    total = sum(item.reference for item in items)
    apart = sum(item.reference - item.here for item in items)
    if not apart:
        return f"All {total:,} answers are equal." if items else ""
    worst = max(items, key=lambda item: item.reference - item.here)
    turned = worst.reference - worst.here
    allowed = math.floor(worst.limit * worst.reference)
    return (
        f"{apart:,} of {total:,} answers {_differ(apart)}, at most {turned:,} of "
        f"{worst.reference:,} in a run ({titles[worst.run]}; up to {allowed:,} allowed)."
    )


def _others_apart(items: Sequence[Comparison]) -> str:
    """How many other comparisons differ, by their kinds; "" if there are none at all."""
    kinds = Counter(KINDS[item.kind] for item in items if _differing(item))
    if not kinds:
        return "All other numbers are equal." if items else ""
    names = ", ".join(f"{kind}: {count}" for kind, count in kinds.most_common())
    return f"{kinds.total()} of {len(items)} other comparisons {_differ(kinds.total())} ({names})."


def _details(verdict: Verdict) -> Iterator[str]:
    """Sentences on texts, on what no processor moves, and on the errors of deep layers."""
    yield from _continuations(verdict)
    steady = [
        item for item in verdict.comparisons if item.kind and item.limit <= ROUNDING
    ]
    if steady:
        most = max(abs(item.difference) for item in steady)
        how = "is equal"
        if most > EQUAL:
            how += f" to within {100 * ROUNDING:g} %"
        if not all(item.within for item in steady):
            how = "differs, which it must not"
        yield (
            "What does not depend on the processor (texts, sparsities, runs that read no "
            f"calibration text) {how}."
        )
    deep = [
        item
        for item in verdict.comparisons
        if item.what.startswith("error/")
        and item.limit > ROUNDING
        and math.isfinite(item.difference)
        and not item.same
    ]
    worst = max(deep, key=lambda item: abs(item.difference), default=None)
    if worst and worst.difference:
        yield (
            "Errors of single layers deep in the model differ by up to "
            f"{_percent(worst.difference)} ({verdict.titles[worst.run]}; "
            f"{_percent(worst.limit)} allowed): small differences grow from block to block."
        )


def _unseen(verdict: Verdict) -> str:
    """How wrong a perplexity might be without being noticed."""
    judged = [
        item for item in verdict.comparisons if item.what.startswith("perplexity")
    ]
    limits = [item.limit for item in judged if item.limit > ROUNDING]
    if not limits:
        return "What a comparison like this can see is on record"
    ends = list(dict.fromkeys(_percent(end(limits)) for end in (min, max)))
    allowed = f"between {listed(ends)}, by run" if len(ends) > 1 else ends[0]
    text = f"Allowed for a perplexity: {allowed}"
    if not any(map(_differing, judged)):
        return f"{text}; none differs, so that was not needed"
    return f"{text}; a mistake in the code that moves it by less goes unnoticed"


def _continuations(verdict: Verdict) -> Iterator[str]:
    """How many of the texts that models wrote (in notebook 00) are ours; none is judged."""
    equal = []
    for pair in verdict.pairs.values():
        here, ours = (
            (record.get("series") or {}).get("continuations", {}) for record in pair
        )
        equal += [here.get(name) == text for name, text in ours.items()]
    if equal:
        yield (
            f"Texts that models wrote: {sum(equal)} of {len(equal)} match ours word for word. They "
            "are not judged: rounding that changes one word changes all that follow."
        )


def _furthest(verdict: Verdict) -> tuple[Comparison, str] | None:
    """What is nearest to its limit, or furthest beyond, with its name; None without a record."""
    for item in verdict.comparisons:
        if item.kind:  # the first that is no missing record
            what = item.what.partition(",")[0]
            return item, f"{verdict.titles[item.run]}: {IN_WORDS.get(what, what)}"
    return None


def _nearest(verdict: Verdict) -> Iterator[str]:
    """What is nearest to its limit, where all is within."""
    if (found := _furthest(verdict)) and found[0].within:
        item, what = found
        if item.used and item.kind != "answers":  # which have a sentence of their own
            yield (
                f"The number nearest to its limit used {100 * item.used:.0f} % of what is allowed "
                f"({what})."
            )


def trouble(verdict: Verdict, plan: str, most: int | None = None) -> Iterator[str]:
    """Which runs are beyond their limits, and what to do about them; nothing if none is.

    most: so many are named, and the others counted; None: all are named.
    """
    found = _furthest(verdict)
    if not found or found[0].within:
        return
    item, what = found
    if math.isfinite(item.difference):
        times = f"{item.used:.1f}" if item.used < 100 else "over 100"
        what += f", {times} times what is allowed"
    apart = dict.fromkeys(
        verdict.titles[each.run]
        for each in verdict.comparisons
        if each.kind and not each.within
    )
    text = f"Further apart than is allowed: {what}."
    if len(apart) > 1:
        names = [*apart][:most]
        more = f" and {len(apart) - len(names)} more" if len(names) < len(apart) else ""
        text = f"Further apart than is allowed: {', '.join(names)}{more}. The furthest: {what}."
    yield text
    if not item.same and item.used < CLOSE:
        yield "That is just outside, and another kind of processor may do it."
        return
    yield (
        f"What to do: remove results/{plan}/records/{item.run}.json, and run make reproduce "
        f"PLAN={plan} again: it makes what is missing. If the difference stays, please report "
        "verdict.txt."
    )


def ranks(verdict: Verdict) -> Iterator[str]:
    """Which methods have changed places; those within their limits are as close as rounding."""
    changed = changed_places(verdict)
    beyond = {
        item.run
        for item in verdict.comparisons
        if item.what.startswith("perplexity") and not item.within
    }
    rows = [committed for _, committed in verdict.pairs.values()]
    if not any(changed.values()):
        moved = any(
            item.difference and item.what.startswith("perplexity")
            for item in verdict.comparisons
        )
        if changed and moved:  # equal numbers stand in the same order
            yield "In every column the methods stand in the same order as ours."
        return
    runs = perplexity_runs(rows)
    runs["beyond"] = [record_id(record) in beyond for record in runs["record"]]
    cells = runs.groupby(["target", "label"])
    far, means = cells["beyond"].any(), cells["perplexity"].mean()
    close = []
    for at, pairs in changed.items():
        for first, second in pairs:
            names = f"{display_name(first)} and {display_name(second)}"
            if far[at, first] or far[at, second]:
                lower = display_name(first)
                yield f"At {at}, {names} have changed places: ours has {lower} lower."
            else:
                gap = _percent(means[at, second] / means[at, first] - 1)
                close.append(f"{names} at {at} (ours are {gap} apart)")
    if close:
        yield (
            f"As close as rounding allows, so that either may be lower: {'; '.join(close)}. "
            "All others keep their ranks."
        )


def changed_places(verdict: Verdict) -> dict[str, list[tuple[str, str]]]:
    """The pairs of methods that have changed places, by each column that has two or more.

    A pair is in the order of the reference's perplexities, means over the seeds that are here.
    """
    sides = list(zip(*verdict.pairs.values(), strict=True))
    if not of_notebook(sides[0], PRUNE_NOTEBOOK):
        return {}
    here, there = (
        over_seeds(perplexity_runs(side), "label", "perplexity")[0] for side in sides
    )
    changed = {}
    for column in there.columns.intersection(here.columns):
        ranked = there[column].dropna().sort_values().index
        ranked = ranked.intersection(here[column].dropna().index, sort=False)
        if len(ranked) > 1:
            changed[column] = [
                (first, second)
                for first, second in itertools.combinations(ranked, 2)
                if here.loc[first, column] > here.loc[second, column]
            ]
    return changed


def _percent(part: float) -> str:
    """A part of one without its sign: "6.0 %"; one that is no digit as "0.05 %"."""
    if 0 < abs(part) < NO_DIGIT:
        return "less than 0.05 %"
    return f"{100 * abs(part):.1f} %"


def machine_lines(verdict: Verdict) -> Iterator[str]:
    """On which kind of machine the runs were made, and how it differs from the reference's."""
    others = [each for each in verdict.machines.values() if each]
    reasons = defaultdict(dict)  # a dictionary keeps an order
    for each in others:
        for key, (here, ours) in each.items():
            reasons[key, f"{here}"][f"{ours}"] = None
    parts = "; ".join(
        f"{key} {here} (ours: {' or '.join(ours)})"
        for (key, here), ours in reasons.items()
        if key != "processor"
    )
    part = ""
    if len(others) < len(verdict.machines):
        part = f" (in {len(others)} of {len(verdict.machines)} runs)"
    if not others:
        (here, _) = _processors(verdict.pairs.values())
        yield (
            f"You have the same kind of machine as ours ({here}; threads and versions, too): "
            f"numbers must agree to {100 * SAME:g} %."
        )
    elif any(key == "processor" for key, _ in reasons):
        apart = [run for run, own in verdict.machines.items() if "processor" in own]
        here, ours = _processors(verdict.pairs[run] for run in apart)
        ours = _without_shared_start(ours, here)
        known = "unknown" not in here and "unknown" not in ours
        yield (
            f"Your processor ({here}) {'is' if known else 'may be'} of another kind than ours "
            f"({ours}){part}."
        )
        if parts:
            yield f"Also different: {parts}."
    elif all(key in COMPUTING for key, _ in reasons):
        yield (
            f"Your processor is of the same kind as ours, but packages are not{part}: {parts}. "
            f"With our packages, numbers must agree to {100 * SAME:g} %."
        )
    else:
        yield f"Your machine differs from ours{part}: {parts}."


def _processors(pairs: Iterable[tuple[Record, Record]]) -> tuple[str, ...]:
    """The processors that pairs of records were made on, yours and ours."""
    return tuple(
        " and ".join(dict.fromkeys(processor_of(each) or "unknown" for each in side))
        for side in zip(*pairs, strict=True)
    )


def _without_shared_start(name: str, other: str) -> str:
    """A processor's name without the parts that stand in front of another's, too."""
    parts = [each.split(", ") for each in (name, other)]
    shared = sum(
        1
        for _ in itertools.takewhile(
            lambda pair: len({*pair}) == 1, zip(*parts, strict=False)
        )
    )
    return ", ".join(parts[0][shared:]) or name


def cells(item: Comparison, titles: Mapping[str, str]) -> list[str]:
    """A comparison as a row of `comparison_lines`."""
    apart = f"{100 * item.difference:+.2f} %"
    used = f"{100 * item.used:.0f} %" if item.used < 100 else "> 100 x"
    if math.isinf(item.difference):
        apart = "missing" if item.here is None else "not equal"
        used = "–"
    limit = f"{100 * item.limit:.3g} %" if item.limit > EQUAL else "equal"
    limit += DAMAGE if item.damage else ""
    within = "yes" if item.within else "NO"
    if not item.same and 1 < item.used < CLOSE:
        within += ", but close"
    values = format_number(item.here), format_number(item.reference)
    return [titles[item.run], item.what, *values, apart, limit, used, within]


def comparison_lines(
    comparisons: Sequence[Comparison], titles: Mapping[str, str]
) -> list[str]:
    """The comparisons as aligned lines with a heading; the last column says yes or NO.

    titles: of runs, as `Verdict.titles`.
    """
    return aligned([HEADS, *(cells(item, titles) for item in comparisons)])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of texts as lines, whose columns stand below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def differences(verdict: Verdict, most: int = 12) -> str:
    """The first of the comparisons that do not agree, for the screen; "" if all do."""
    apart = [
        item
        for item in verdict.comparisons
        if not item.within and item.what != "record"
    ]
    if not apart:
        return ""
    rows = [HEADS, *(cells(item, verdict.titles) for item in apart[:most])]
    # without what a legend would have to explain
    rows = [[*row[:5], row[5].removesuffix(DAMAGE)] for row in rows]
    lines = aligned(rows)
    if len(apart) > most:
        lines.append(f"and {len(apart) - most} more, in verdict.txt")
    return "\n".join(lines)


def verdict_page(verdict: Verdict, plan: str, reading: str = "") -> str:
    """The text of verdict.txt: the summary, how to read the numbers, and every comparison.

    Those that are equal, or nearly so, are counted in the last lines; a legend explains the others,
    if there are any.
    """
    near = [item for item in verdict.comparisons if item.used < FOLDED]
    shown = [item for item in verdict.comparisons if item.used >= FOLDED]
    parts = [verdict_summary(verdict, plan), reading]
    if shown:
        lines = "\n".join(comparison_lines(shown, verdict.titles))
        parts += [LEGEND, lines, BUT_CLOSE if lines.count(", but close") else ""]
    if near:
        kinds = Counter(KINDS[item.kind] for item in near)
        by_kind = ", ".join(f"{kind}: {count}" for kind, count in kinds.most_common())
        which = (
            f"{len(near)} more comparisons" if shown else f"All {len(near)} comparisons"
        )
        how = f"are equal, or use less than {100 * FOLDED:.0f} % of what is allowed"
        if not any(map(_differing, near)):
            how = "are equal"
        parts.append(textwrap.fill(f"{which} {how}: {by_kind}.", WIDTH))
    return "\n\n".join(filter(None, parts)) + "\n"
