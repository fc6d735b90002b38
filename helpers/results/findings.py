"""What the records of one model say, looked up the way the claims ask for it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import pandas as pd

from helpers.results.frame import (
    PRUNE_NOTEBOOK,
    USUAL,
    ZERO_SHOT_NOTEBOOK,
    Record,
    common_setting,
    run_frame,
)

Row = Mapping[str, Any]

ENOUGH = 0.01  # an objective this close to its optimum counts as having arrived


class Findings:
    """The runs and problems of the records of one model."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.records = list(records)
        self.pruned = self._runs_of(PRUNE_NOTEBOOK)
        self.problems = problem_frame(self.records)

    def _runs_of(self, notebook: str) -> pd.DataFrame:
        """The runs of a notebook in the setting that most share; of two of a kind the later."""
        runs = run_frame(common_setting(r for r in self.records if r["notebook"] == notebook))
        return runs.drop_duplicates(["method", "target", "options", "seed"], keep="last")

    def runs(self, method: str, target: str, **options: Any) -> pd.DataFrame:
        """The runs of a method at a target with just these options, by calibration seed."""
        wanted = {"method": method, "target": target, "options": json.dumps(options)}
        same = (self.pruned[list(wanted)] == pd.Series(wanted)).all(axis=1)
        return self.pruned[same].set_index("seed").sort_index()

    def paired(self, ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
        """Two selections of `runs` seed by seed; the columns of the second end in " there"."""
        return ours.merge(theirs, left_index=True, right_index=True, suffixes=("", " there"))

    def plain(self) -> pd.DataFrame:
        """Perplexity without options, by target and seed, a column for each method."""
        plain = self.pruned[self.pruned["options"] == "{}"]
        return plain.pivot(index=["target", "seed"], columns="method", values="perplexity")

    def spread(self) -> float | None:
        """The largest of the plain cells' half ranges over seeds, relative; None without seeds."""
        cells = self.plain().drop(columns="dense", errors="ignore").groupby(level="target")
        halves = ((cells.max() - cells.min()) / 2 / cells.mean()).where(cells.count() > 1)
        largest = halves.max().max()
        return None if pd.isna(largest) else largest

    def answers(self) -> list[dict[str, Mapping[str, Any]]]:
        """Zero-shot answers by method, for each target and seed."""
        scored = self._runs_of(ZERO_SHOT_NOTEBOOK)
        return [
            {run.method: run.record["series"]["zero_shot"] for run in found.itertuples()}
            for _, found in scored[scored["options"] == "{}"].groupby(["target", "seed"])
        ]


def cost_to_reach(curve: Row, excess: float, unit: str) -> float:
    """The iterations or seconds in which a curve gets to an excess for the first time, or inf.

    Between two points the logarithm of the excess is taken as straight, so that a curve with few
    points is not charged up to its next one.
    """
    before = None
    for cost, reached in zip(curve[unit], curve["excess"], strict=True):
        if reached <= excess:
            if before is None or min(excess, reached) <= 0:
                return cost
            share = math.log(before[1] / excess) / math.log(before[1] / reached)
            return before[0] + share * (cost - before[0])
        before = (cost, reached)
    return math.inf


def least(curves: Iterable[Row], excess: float, unit: str) -> float:
    """The least cost of any of the curves."""
    return min((cost_to_reach(curve, excess, unit) for curve in curves), default=math.inf)


class Problem(NamedTuple):
    """A layer at a sparsity in the update study; what was not run is NaN."""

    layer: tuple[Any, ...]
    excess: float  # this and the next four: ADMM with its defaults after 20 iterations
    error: float
    heldout: float
    iterations: float
    seconds: float
    rhos: int  # how many were tried with 20 iterations
    best_rho: float  # the one nearest to the optimum
    sparsegpt_error: float
    sparsegpt_heldout: float
    scaled: float  # iterations to within 1 % with preconditioning, at the best ρ
    unscaled: float  # the same without
    usual: list[Row]  # ADMM's curves with its defaults
    curves: list[Row]


def problem_frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row a `Problem`. ADMM counts with the study's damping."""
    rows = []
    for record in records:
        series, asked = record.get("series") or {}, record["parameters"]
        damping = asked.get("damping", USUAL["damping"])
        for sparsity in sorted({row["sparsity"] for row in series.get("update", ())}):
            update, curves = (
                [row for row in series[part] if row["sparsity"] == sparsity]
                for part in ("update", "curves")
            )
            admm, scaled, unscaled = (
                [row for row in found if row["solver"] == "admm" and row["damping"] == damping
                 and row["precondition"] == precondition]
                for found, precondition in ((update, True), (curves, True), (curves, False))
            )  # fmt: skip
            ends = {row["rho"]: row for row in admm if row["iterations"] == 20}
            ours = ends.get(USUAL["rho"], {})
            other = next((row for row in update if row["solver"] == "sparsegpt"), {})
            needed = [least(found, ENOUGH, "iterations") for found in (scaled, unscaled)]
            rows.append(Problem(
                (asked.get("model"), asked.get("block"), asked.get("layer")),
                *(ours.get(name, math.nan) for name in Problem._fields[1:6]),
                len(ends),
                min(ends, key=lambda rho, e=ends: e[rho]["excess"], default=math.nan),
                *(other.get(name, math.nan) for name in ("error", "heldout")),
                *(needed if scaled and unscaled else (math.nan, math.nan)),
                [curve for curve in scaled if curve["rho"] == USUAL["rho"]],
                curves,
            ))  # fmt: skip
    return pd.DataFrame(rows, columns=Problem._fields)
