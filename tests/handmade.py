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


def pruned(
    method: str,
    target: str,
    perplexity: float,
    seed: int = 0,
    seconds: dict[str, float] | None = None,
    **parameters,
):
    """A record of notebook 04 at "60 %" or "2:4", with seconds of parts by their names."""
    sparsity = 0.5 if ":" in target else float(target.rstrip(" %")) / 100
    settings = {
        **SETTING,
        "method": method,
        "sparsity": sparsity,
        "pattern": target if ":" in target else "unstructured",
        "options": {},
        "calibration_seed": seed,
        **parameters,
    }
    timed = {"prune": 10.0, "evaluate": 4.0} | (seconds or {})
    errors = [
        {
            "block": block,
            "name": name,
            "error": None if method in BLIND else sparsity * (block + 1),
        }
        for block in range(4)
        for name in ("self_attn.q_proj", "mlp.down_proj")
    ]
    return {
        "notebook": "04_prune_model",
        "name": f"{method}-{target}-{seed}",
        "parameters": settings,
        "metrics": {"perplexity": metric(perplexity)}
        | {f"{part}_seconds": metric(value, "s") for part, value in timed.items()},
        "data": {} if method in BLIND else {"calibration": {}},
        "device": "cpu, 2 threads",
        "peak_memory_bytes": 2_500_000_000,
        "series": None,
        "layers": [] if method == "dense" else errors,
    }


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
    settings = {"allocation": "", "repair_windows": windows}
    settings |= {"repair": "" if after is None else "all", "web_windows": 16}
    record = pruned(method, target, 0.0, seed, **settings | parameters)
    values = {"": before if after is None else after, "_layers": before, "_dense": 20.0}
    allocate, prune, repair = seconds if after is not None else (*seconds[:2], 0.0)
    parts = {"allocate": allocate, "prune": prune, "repair": repair}
    metrics = {f"perplexity{end}": metric(value) for end, value in values.items()}
    metrics |= {
        f"perplexity_web{end}": metric(2 * value) for end, value in values.items()
    }
    parts["total"] = sum(parts.values())
    metrics |= {f"{part}_seconds": metric(value, "s") for part, value in parts.items()}
    return record | {"notebook": "08_beyond_the_paper", "metrics": metrics}


def scored(method: str, **answers: list[int]):
    """A record of notebook 05 with these answers by task, each with a standard error of 0.03."""
    record = pruned(method, "50 %", 0.0)
    metrics = {}
    for task, right in answers.items():
        metrics[f"{task}_acc"] = metric(sum(right) / len(right))
        metrics[f"{task}_acc_stderr"] = metric(0.03)
    series = {
        task: {"items": list(range(len(a))), "acc": a} for task, a in answers.items()
    }
    made = {
        "notebook": "05_zero_shot",
        "metrics": metrics,
        "series": {"zero_shot": series},
    }
    return record | made | {"versions": {"lm-eval": "0.4.13"}}


def with_series(notebook: str, given: dict | None = None, **series):
    """A record of a notebook that has series and nothing else."""
    parameters = {"model": "embedded"} | (given or {})
    return {
        "notebook": notebook,
        "parameters": parameters,
        "metrics": {},
        "series": series,
    }


def update_row(solver: str, iterations: int | None = 20, **changes):
    """A row of the update study; ADMM with its defaults unless changed."""
    usual = {"rho": 1.0, "precondition": True, "damping": 0.1, "learning_rate": None}
    row = {"solver": solver, "sparsity": 0.5, "iterations": iterations, "seconds": 1.0}
    row |= (usual if solver == "admm" else dict.fromkeys(usual)) | changes
    row.setdefault("error", row.get("excess", 0.1))
    row.setdefault("excess", row["error"])
    return {"heldout": row["error"]} | row
