"""The paper's claims, each with a test on the records of a plan, and the verdicts on them.

Without the records that a test needs the verdict is "not tested here". With too few of them to tell
(few seeds, some of the sparsities, a handful of layers, seconds of runs that shared the machine) or
within the noise it is "not decided here". See `helpers.report.evidence`.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from helpers.report.beyond_claims import BEYOND_CLAIMS
from helpers.report.evidence import SEEDED, Claim, decide
from helpers.report.labels import display_name
from helpers.report.layer_claims import FEWEST_LAYERS, LAYER_CLAIMS, MIDDLE, MOST
from helpers.report.model_claims import FEW_SEEDS, MODEL_CLAIMS, SEEDS
from helpers.report.model_results import ModelResults
from helpers.report.records import Records

CLAIMS = sorted([*LAYER_CLAIMS, *MODEL_CLAIMS, *BEYOND_CLAIMS])  # by their numbers
RULES = (
    "A problem is a layer at a sparsity, on one mask by Wanda's score (budget per matrix); what is "
    f"said of layers must be true on {100 * MOST:.0f} % of the problems, on {FEWEST_LAYERS} layers "
    f"or more; it does not hold where it is true on {100 * MIDDLE:.0f} % or fewer. Seconds count "
    "only of runs that had the machine to themselves. Means over seeds, paired by seed, must be on "
    "one side of their limit by more than Student's 95 % interval (±), with at least "
    f"{SEEDS} seeds at {SEEDED}, or {FEW_SEEDS} for answers, repairs and seconds. A column with "
    f"fewer takes the interval at {SEEDED}, widened for that and, for perplexities, in proportion "
    "to the damage ln(perplexity / dense)."
)


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
    verdicts = []
    for claim in claims:
        margins, numbers = claim.test(results)
        numbers = re.sub(r"(?<![\w.])-(?=\d)", "−", numbers)  # as wide as a plus
        noiseless = [(margin, 0.0) for margin, _ in margins if not math.isnan(margin)]
        verdict = ClaimVerdict(
            claim, decide(margins), display_name(numbers), decide(noiseless)
        )
        verdicts.append(verdict)
    return verdicts
