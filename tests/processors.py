"""What another kind of processor does to a record, as runs on several kinds have shown.

processors.json holds pairs of records by one code each, in a compact form: of a pair the
parameters, the numbers on either side, the perplexity of the dense model, how far the error of each
layer is apart, in millionths, block by block, and of answers how many there are and how many
turned. "pairs" are the 78 that the verdict's limits were chosen on; the plan "avx2"
among them is `laptop` on AMD EPYC of family 26, model 2, held to kernels for AVX2
(ATEN_CPU_CAPABILITY=avx2, ONEDNN_MAX_CPU_ISA=AVX2, MKL_ENABLE_INSTRUCTIONS=AVX2), beside the
committed records, whose digits it has without that. Seen after the first 53: "later", the
25 runs of `laptop` on an Intel Xeon of family 6, model 167, beside AMD EPYC of family 25, model 17
(20 of them have the digits of the 20 pairs of `laptop`, on either side). "answers": 13 on AMD EPYC
of family 25 beside an Intel Xeon of model 207.
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
    """The names of two processors, which stand for either side, and the pairs."""
    return json.loads(Path(__file__).with_name("processors.json").read_text("utf-8"))


def records(name: str = "pairs") -> dict[str, tuple[list[Record], list[Record]]]:
    """By plan, the records of the same runs on either side."""
    plans: dict[str, tuple[list[Record], list[Record]]] = {}
    for pair in known()[name]:
        items, turned = pair.get("answers", (0, 0))
        for side, processor in enumerate(known()["processors"]):
            layers = []
            for block, parts in enumerate(pair["apart"]):
                for layer, part in enumerate(parts):
                    error = 1e-2
                    if not side:
                        error *= 1 + part / 1e6
                    layers.append({"block": block, "name": layer, "error": error})
            record = {
                "notebook": pair["run"].partition("--")[0],
                "name": pair["run"],
                "parameters": pair["parameters"],
                "metrics": {
                    name: {"value": values[side], "unit": "1"}
                    for name, values in pair["metrics"].items()
                },
                "data": {text: {"tokens": text} for text in pair["data"]},
                "platform": {"processor": processor},
                "layers": layers,
            }
            if items:
                right = [int(side or item >= turned) for item in range(items)]
                score = {"items": list(range(items)), "acc": right}
                answers = {"zero_shot": {"all": score}, "answers": {"all": right}}
                record["series"] = answers
            plans.setdefault(pair["plan"], ([], []))[side].append(record)
    return plans


def kind_of(parameters: dict[str, Any]) -> str:
    """By what a record's rounding goes: its method, or that a guide's gradients round too."""
    guided = parameters.get("allocation") or parameters.get("effort")
    return "guided" if guided else parameters.get("method", "")


@functools.cache
def pairs_of(kind: str) -> list[dict[str, Any]]:
    """The pairs of a kind that have layers."""
    return [
        p
        for p in known()["pairs"]
        if kind_of(p["parameters"]) == kind and any(p["apart"])
    ]


def turn(record: Record, draw: random.Random) -> None:
    """Turn as many of a record's answers as those of a pair of the same kind have turned."""
    kind = kind_of(record["parameters"])
    pairs = [p for p in known()["answers"] if kind_of(p["parameters"]) == kind]
    for answers in record.get("series", {}).get("answers", {}).values():
        items, turned = draw.choice(pairs)["answers"]
        for place in draw.sample(
            range(len(answers)), round(len(answers) * turned / items)
        ):
            answers[place] += 1


def rounded(record: Record, dense: float, draw: random.Random) -> Record:
    """The record as another kind of processor could have made it.

    Its layers and its damage ln(perplexity / dense) move as far as those of a pair of the same kind
    did, each layer as one of that pair's layers at its depth, up or down. Answers turn.
    """
    moved = copy.deepcopy(record) | {"platform": {"processor": "another"}}
    turn(moved, draw)
    pairs = pairs_of(kind_of(record["parameters"]))
    if not pairs or not any(layer["error"] for layer in record["layers"]):
        return moved
    pair = draw.choice(pairs)
    for layer in moved["layers"]:
        blocks = pair["apart"][slice(*DEPTHS[layer["block"]])]
        seen = [part for parts in blocks for part in parts if part is not None]
        layer["error"] *= 1 + draw.choice((-1, 1)) * draw.choice(seen) / 1e6
    one, other = pair["metrics"]["perplexity"]
    share = abs(math.log(one / other)) / math.log(other / pair["dense"])
    for name, entry in moved["metrics"].items():
        if name == "perplexity" and entry["value"] > dense:
            damage = math.log(entry["value"] / dense)
            damage *= 1 + draw.choice((-1, 1)) * share
            entry["value"] = dense * math.exp(damage)
        elif name == "mean_layer_error" and name in pair["metrics"]:
            one, other = pair["metrics"][name]
            entry["value"] *= one / other
    return moved
