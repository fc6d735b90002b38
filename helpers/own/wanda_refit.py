"""A method of one's own: Wanda's mask, its weights refitted by ADMM.

Every file here adds the method that it is named after: `method: wanda-refit` in a run file, or
`prune_model(..., method="wanda-refit")`, loads this one. Copy it to begin with your own;
notebooks/07_your_own_method.ipynb leads through all of it.
"""

from helpers import LayerResult, refit, register, select


@register("wanda-refit", budget="output")
def wanda_refit(
    weight,
    gram,
    *,
    sparsity,
    pattern,
    keep=None,
    iterations=20,
):
    """Keep the largest |W|·‖x‖ in each output, then fit them to the dense layer's outputs."""
    if keep is None:
        input_norms = gram.diagonal().sqrt()
        scores = weight.abs() * input_norms
        keep = select(scores, sparsity, pattern, "output")
    fitted = refit(weight, gram, keep, iterations=iterations)
    return LayerResult(fitted.weight, keep)
