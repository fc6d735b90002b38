"""How the names of methods and layers are printed."""

import re

METHOD_NAMES = {
    "wanda": "Wanda",
    "sparsegpt": "SparseGPT",
    "admm": "ADMM",
    "admm1": "ADMM1",
    "admm-grad": "ADMM-Grad",
    "alps": "ALPS",
    "owl": "OWL",
    "besa": "BESA",
    "csr": "CSR",
    "cg": "CG",
    "sgd": "SGD",
    "adam": "Adam",
}


def display_name(label: str) -> str:
    """A label as tables and figures print it: "ADMM-Grad, OWL" for "admm-grad, owl"."""
    label = re.sub(r"[\w-]+", lambda word: METHOD_NAMES.get(word[0], word[0]), label)
    return re.sub(r"^(dense|magnitude)\b", lambda word: word[0].capitalize(), label)


def short_layer(name: str) -> str:
    """A layer without the module that holds it: "block 0 q_proj" for "block 0 self_attn.q_proj"."""
    return re.sub(r"\S+\.", "", name)
