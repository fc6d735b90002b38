"""What another kind of processor does to a record, as runs on two kinds have shown.

two_processors.json holds 53 pairs of records by one code each: of a pair, the parameters, the
numbers on either side, and how far the error of each layer is apart, in millionths, block by block.
"""

import copy
import functools
import json
import math
import random
from pathlib import Path
from typing import Any

Record = dict[str, Any]
# for each block of a model of four, blocks of a real one: the verdict has bounds by block
DEPTHS = ((0, 1), (1, 2), (2, 8), (2, 8))


@functools.cache
def known() -> dict[str, Any]:
    """The names of the two processors, and the pairs."""
    return json.loads(
        Path(__file__).with_name("two_processors.json").read_text("utf-8")
    )


def records() -> dict[str, tuple[list[Record], list[Record]]]:
    """By plan, the records of the same runs on either side."""
    plans: dict[str, tuple[list[Record], list[Record]]] = {}
    for pair in known()["pairs"]:
        for side, processor in enumerate(known()["processors"]):
            layers = []
            for block, parts in enumerate(pair["apart"]):
                for name, part in enumerate(parts):
                    error = 1e-2
                    if not side:
                        error *= 1 + part / 1e6
                    layers.append({"block": block, "name": name, "error": error})
            metrics = {}
            for name, values in pair["metrics"].items():
                metrics[name] = {"value": values[side], "unit": "1"}
            record = {
                "notebook": pair["run"].partition("--")[0],
                "name": pair["run"],
                "parameters": pair["parameters"],
                "metrics": metrics,
                "data": {text: {"tokens": text} for text in pair["data"]},
                "platform": {"processor": processor},
                "layers": layers,
            }
            plans.setdefault(pair["plan"], ([], []))[side].append(record)
    return plans


def kind_of(parameters: dict[str, Any]) -> str:
    """By what a record's rounding goes: its method, or that a guide's gradients round too."""
    guided = parameters.get("allocation") or parameters.get("effort")
    return "guided" if guided else parameters["method"]


@functools.cache
def pairs_of(kind: str) -> list[dict[str, Any]]:
    """The pairs of a kind that have layers."""
    return [
        p
        for p in known()["pairs"]
        if kind_of(p["parameters"]) == kind and any(p["apart"])
    ]


def rounded(record: Record, dense: float, draw: random.Random) -> Record:
    """The record as another kind of processor could have made it.

    Its layers and its damage ln(perplexity / dense) move as far as those of a pair of the same kind
    did, each layer as one of that pair's layers at its depth, up or down.
    """
    moved = copy.deepcopy(record) | {"platform": {"processor": "another"}}
    pairs = pairs_of(kind_of(record["parameters"]))
    if not pairs or not any(layer["error"] for layer in record["layers"]):
        return moved
    pair = draw.choice(pairs)
    for layer in moved["layers"]:
        blocks = pair["apart"][slice(*DEPTHS[layer["block"]])]
        seen = [part for parts in blocks for part in parts if part is not None]
        layer["error"] *= 1 + draw.choice((-1, 1)) * draw.choice(seen) / 1e6
    one, other = pair["metrics"]["perplexity"]
    share = abs(math.log(one / other)) / math.log(other / 15)
    for name, entry in moved["metrics"].items():
        if name == "perplexity" and entry["value"] > dense:
            damage = math.log(entry["value"] / dense)
            damage *= 1 + draw.choice((-1, 1)) * share
            entry["value"] = dense * math.exp(damage)
        elif name == "mean_layer_error" and name in pair["metrics"]:
            one, other = pair["metrics"][name]
            entry["value"] *= one / other
    return moved
