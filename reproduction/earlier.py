"""Draws that earlier releases measured, and whose records only git has today.

`python -m reproduction.earlier` reads their records from git, in a clone with its whole history,
and writes their values to results/reference/earlier.json. The page of claims shows them beside
today's; they decide nothing.
"""

import functools
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pandas as pd

from helpers.paths import replace_file, root
from reproduction import claim_draws
from reproduction.pipelines import BASE, GUIDED, REPAIRED
from reproduction.records import Record

FILE = root() / "results/reference/earlier.json"
# commit and release, plan, and what of it is kept: quantity, row, the row beside it, columns
SOURCES = (
    (
        ("50b7096b72c180d449f7bca591d4c9eccef530d3", "0.8.0", "full"),
        [
            *(
                ("perplexity", f"{BASE} ({option})", BASE, ["60 %"])
                for option in (
                    "iterations=50",
                    "precondition=False",
                    "schedule=released",
                )
            ),
            *(
                ("perplexity", BASE, rival, ["4:8"])
                for rival in ("sparsegpt", "wanda", "admm1")
            ),
            ("perplexity", "admm1", "sparsegpt", ["4:8"]),
            ("closed", REPAIRED, BASE, ["60 %", "70 %"]),
            ("closed", f"{BASE}, guide (2), one pass", BASE, ["60 %"]),
            ("closed", f"{GUIDED}, bfloat16 + distil (64)", BASE, ["60 %"]),
            ("repaired", REPAIRED, REPAIRED.replace(BASE, "sparsegpt"), ["60 %"]),
            ("lambada", claim_draws.RECIPE, BASE, ["50 %"]),
        ],
    ),
    (
        ("3b735750c61d7bdcdd0b2e5075c6ffd5a1b4e607", "0.10.0", "beyond"),
        [
            ("answers", claim_draws.RECIPE, BASE, ["50 %"]),
            ("lambada", claim_draws.RECIPE, BASE, ["50 %"]),
        ],
    ),
)


@functools.cache
def earlier_draws() -> pd.DataFrame:
    """The values, a row a draw: release, commit, quantity, of, against, at, draw, value, error.

    And calibration, evaluation and processor, as in `Scale`.
    """
    return pd.DataFrame(json.loads(FILE.read_text("utf-8")))


def records_at(commit: str, plan: str) -> list[Record]:
    """The records of a plan as they were committed; parameters by today's names."""
    folder = f"results/reference/{plan}/records/"
    names = _git("ls-tree", "-r", "--name-only", commit, folder).decode().split()
    blobs = io.BytesIO(
        _git("cat-file", "--batch", given="".join(f"{commit}:{n}\n" for n in names))
    )
    records = []
    for _ in names:
        size = int(blobs.readline().split()[-1])
        record = json.loads(blobs.read(size))
        blobs.read(1)
        parameters = record["parameters"]
        if parameters.get("allocation") == "uniform":
            parameters["allocation"] = ""
        if parameters.get("method") == "best":  # the recipe's name then
            parameters |= {"method": BASE, "effort": "balanced"}
        if record["notebook"].startswith("04"):
            # most of these do not name their processor, and their pairs are of one seed
            record |= {"platform": None, "device": "cpu"}
        records.append(record)
    return records


def _git(*command: str, given: str = "") -> bytes:
    """What git prints."""
    return subprocess.run(
        ["git", *command],
        input=given.encode(),
        stdout=subprocess.PIPE,
        check=True,
        cwd=root(),
    ).stdout


def extracted() -> Iterator[dict[str, Any]]:
    """The rows of `earlier_draws`, from git."""
    for (commit, release, plan), wanted in SOURCES:
        # the recipe's answers are compared with those of the plan full
        full = records_at(commit, "full") if plan != "full" else []
        draws = claim_draws.Draws(records_at(commit, plan), full)
        for quantity, of, against, columns in wanted:
            found = draws.of(quantity, of, against)
            for row in found[found["at"].isin(columns)].itertuples():
                yield {
                    "release": release,
                    "commit": commit,
                    "quantity": quantity,
                    "of": of,
                    "against": against,
                    "at": row.at,
                    "draw": row.draw,
                    "value": round(row.value, 8),
                    "error": round(row.error, 8),
                    **row.scale._asdict(),
                }


if __name__ == "__main__":
    lines = ",\n ".join(json.dumps(row, ensure_ascii=False) for row in extracted())
    sys.stdout.write(f"{replace_file(FILE, f'[{lines}]' + chr(10))}\n")
