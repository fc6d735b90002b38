"""Claims that go beyond the paper: what the repair of a whole model gains, and in how many
seconds.

They are tested as the paper's are (`helpers.report.claims`), on the runs of notebook 08.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from helpers.report import tables
from helpers.report.beyond import BASE, GUIDE, TARGET, way_frame
from helpers.report.outcome import FAILS, OPEN, Claim, Outcome, between, untested

SEEDS = 3  # at TARGET; fewer decide nothing
STEPS = 64  # of the repair, a window each: the budget "balanced"
ONCE = ", one pass"  # of the text through each block, as in the recipe


def _closes(
    findings: Any, way: str, least: float, most: float, also: str = "", needed: bool = False
) -> Outcome:
    """A way closes a share `least` of the gap in `most` times the seconds.

    At TARGET and at `also`, which must have been run if it is `needed`.
    """
    ways = way_frame(findings.records).query("usual and way == @way")
    seeds = ways.groupby(["target", "seed"])[["closed", "times"]].mean().dropna()
    there = seeds.index.get_level_values("target")
    found = {target: seeds.loc[target] for target in (TARGET, also) if target in there}
    if TARGET not in found:
        return untested(f"runs of {way} at {TARGET} (notebook 08)")
    margins, shown = [], []
    for target, runs in found.items():
        texts = []
        for name, bound, sign in (("closed", least, 1), ("times", most, -1)):
            mean, half = tables.interval(list(runs[name]))
            if len(runs) < len(found[TARGET]):  # what seeds do to it at TARGET says how far it is
                half = tables.interval(list(found[TARGET][name]))[1]
                half *= math.sqrt(len(found[TARGET]) / len(runs))
            margins.append((sign * (mean - bound), half))
            scale, digits = (100, 0) if name == "closed" else (1, 2)
            error = "" if math.isnan(half) else f" ± {scale * half:.{digits}f}"
            texts.append(f"{scale * mean:.{digits}f}{error}")
        shown.append(f"{target} closed {texts[0]} % in {texts[1]} times the seconds")
    missing = [also] if needed and also not in found else []
    return _judged(margins, shown, len(found[TARGET]), missing)


def _better_start(findings: Any, others: Sequence[str]) -> Outcome:
    """ADMM-Grad has lower perplexity than `others` after the same repair."""
    ways = way_frame(findings.records).query("usual and target == @TARGET")
    values = ways.groupby(["way", "seed"])["perplexity"].mean().unstack("way")
    repaired = {name: f"{name}{GUIDE}{ONCE} + distil ({STEPS})" for name in (BASE, *others)}
    margins, shown, missing, fewest = [], [], [], math.inf
    for other in others:
        pair = values.reindex(columns=[repaired[BASE], repaired[other]]).dropna()
        if pair.empty:
            missing.append(repaired[other])
            continue
        fewest = min(fewest, len(pair))
        mean, half = tables.interval(list(np.log(pair.iloc[:, 0] / pair.iloc[:, 1])))
        margins.append((-mean, half))
        error = "" if math.isnan(half) else f" ± {100 * half * math.exp(mean):.0f}"
        shown.append(f"against {other}: {100 * math.expm1(mean):+.0f}{error} %")
    if not margins:
        return untested(f"runs of {' and '.join(repaired.values())} at {TARGET} (notebook 08)")
    return _judged(margins, shown, fewest, missing)


def _judged(
    margins: Sequence[tuple[float, float]], shown: Sequence[str], seeds: int, missing: Sequence[str]
) -> Outcome:
    """The verdict on margins that are to be above zero, each with half of its interval."""
    lacking = [f"{seeds} of {SEEDS} seeds at {TARGET}"] if seeds < SEEDS else []
    lacking += [f"not run: {', '.join(missing)}"] if missing else []
    verdict, leans = between(margins, least=0.0)
    numbers = "; ".join([*shown, *(lacking or [f"{seeds} seeds at {TARGET}"])])
    if seeds < SEEDS or (lacking and verdict != FAILS):
        verdict = OPEN
    return Outcome(verdict, numbers, leans)


SCALED = f"a column with fewer seeds takes the interval at {TARGET}, widened for its fewer seeds"
INTERVAL = f"Student's 95 % interval, with at least {SEEDS} seeds at {TARGET}"
SHARE = (
    "{} of ln(perplexity / dense) after ADMM-Grad is closed, and {} take at most {} times the "
    f"seconds of ADMM-Grad with two passes, by more than {INTERVAL}; {SCALED}"
)
REPAIR_CLAIMS = (
    Claim(
        "Guide and repair close half of the gap that ADMM-Grad leaves, in at most four times its "
        "seconds (not in the paper).",
        f"After the guide, ADMM-Grad and {STEPS} steps of distillation, at 60 and 70 %, "
        f"{SHARE.format('half', 'guide, pruning and repair', 4)}.",
        partial(
            _closes,
            way=f"{BASE}{GUIDE}{ONCE} + distil ({STEPS})",
            least=0.5,
            most=4.0,
            also="70 %",
            needed=True,
        ),
    ),
    Claim(
        "A guide of two sequences closes at least a tenth of the gap, in at most 1.3 times "
        "ADMM-Grad's seconds (not in the paper).",
        f"After that guide and ADMM-Grad, at 60 %, and at 70 % where it was run, "
        f"{SHARE.format('a tenth', 'guide and pruning', 1.3)}.",
        partial(_closes, way=f"{BASE}{GUIDE} (2){ONCE}", least=0.1, most=1.3, also="70 %"),
    ),
    Claim(
        "With the same guide and repair, ADMM-Grad is still a better start than SparseGPT and "
        "Wanda (not in the paper).",
        f"Lower perplexity at {TARGET} after the guide and {STEPS} steps of distillation: the mean "
        f"ln ratio by seed is below 0 by more than {INTERVAL}. Wanda's budget for each output "
        "leaves the guide no choice within a layer.",
        partial(_better_start, others=("sparsegpt", "wanda")),
    ),
)
