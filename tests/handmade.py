"""Records written by hand, so that every number of a table or a claim can be checked by eye."""

SETTING = {
    "model": "embedded",
    "calibration": "embedded",
    "sequences": 16,
    "length": 512,
    "evaluation": "embedded",
    "window": 512,
    "windows": 20,
}
BLIND = ("dense", "magnitude")  # methods that read no calibration text


def metric(value: float, unit: str = "1"):
    return {"value": value, "unit": unit}


def in_seconds(parts: dict[str, float]):
    return {f"{part}_seconds": metric(value, "s") for part, value in parts.items()}


def pruned(
    method: str,
    target: str,
    perplexity: float,
    seed: int = 0,
    seconds: dict[str, float] | None = None,
    **parameters,
):
    """A record of notebook 04 at "60 %" or "2:4", with seconds of parts by their names."""
    settings = {"method": method, "options": {}, "calibration_seed": seed}
    if ":" in target:
        settings |= {"sparsity": 0.5, "pattern": target}
    else:
        sparsity = float(target.rstrip(" %")) / 100
        settings |= {"sparsity": sparsity, "pattern": "unstructured"}
    layers = []
    for block in range(4):
        for name in ("self_attn.q_proj", "mlp.down_proj"):
            error = settings["sparsity"] * (block + 1)
            layers.append({"block": block, "name": name, "error": error})
    record = {
        "notebook": "04_prune_model",
        "name": f"{method}-{target}-{seed}",
        "parameters": SETTING | settings | parameters,
        "metrics": {"perplexity": metric(perplexity)},
        "data": {"calibration": {}},
        "device": "cpu, 2 threads",
        "peak_memory_bytes": 2_500_000_000,
        "series": None,
        "layers": layers,
    }
    record["metrics"] |= in_seconds({"prune": 10.0, "evaluate": 4.0} | (seconds or {}))
    if method in BLIND:
        record["data"] = {}
        for layer in layers:
            layer["error"] = None
    if method == "dense":
        record["layers"] = []
    return record


def repaired(
    method: str,
    target: str,
    before: float,
    after: float | None = None,
    seed: int = 0,
    windows: int = 64,
    seconds: tuple[float, float, float] = (0.0, 100.0, 300.0),
    **parameters,
):
    """A record of notebook 08: perplexity of the layers alone and, unless None, after the repair.

    On web text all is twice that; the dense model has 20. seconds: to allocate, to prune, and of
    the repair.
    """
    settings = {"allocation": "", "repair_windows": windows, "web_windows": 16}
    settings["repair"] = "all"
    parts = dict(zip(("allocate", "prune", "repair"), seconds, strict=True))
    if after is None:
        after = before
        settings["repair"] = ""
        parts["repair"] = 0.0
    parts["total"] = sum(parts.values())
    record = pruned(method, target, 0.0, seed, **settings | parameters)
    metrics = in_seconds(parts)
    for end, value in (("", after), ("_layers", before), ("_dense", 20.0)):
        metrics[f"perplexity{end}"] = metric(value)
        metrics[f"perplexity_web{end}"] = metric(2 * value)
    return record | {"notebook": "08_beyond_the_paper", "metrics": metrics}


def scored(method: str, seed: int = 0, **answers: list[int]):
    """A record of notebook 05 at 50 % with these answers by task."""
    record = pruned(method, "50 %", 0.0, seed)
    series = {
        task: {"items": list(range(len(right))), "acc": right, "acc_norm": None}
        for task, right in answers.items()
    }
    return record | {
        "notebook": "05_zero_shot",
        "metrics": {},
        "series": {"zero_shot": series},
        "versions": {"lm-eval": "0.4.13"},
    }


def with_series(notebook: str, given: dict | None = None, **series):
    """A record of a notebook that has series and nothing else."""
    parameters = {"model": "embedded"} | (given or {})
    return {
        "notebook": notebook,
        "name": "default",
        "parameters": parameters,
        "metrics": {},
        "series": series,
    }


def update_row(solver: str, iterations: int | None = 20, **changes):
    """A row of the update study; ADMM with its defaults unless changed."""
    row = {"rho": 1.0, "precondition": True, "damping": 0.1, "learning_rate": None}
    if solver != "admm":
        row = dict.fromkeys(row)
    row |= {"solver": solver, "sparsity": 0.5, "iterations": iterations, "seconds": 1.0}
    row |= changes
    row.setdefault("error", row.get("excess", 0.1))
    row.setdefault("excess", row["error"])
    row.setdefault("heldout", row["error"])
    return row
