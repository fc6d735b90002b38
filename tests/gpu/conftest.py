"""The GPU that these tests run on: a real one where there is one, else a pretended one."""

import pytest
import torch
from pretend import pretended_gpu


@pytest.fixture(autouse=True)
def card():
    """The pretended GPU, or None."""
    if torch.cuda.is_available():
        yield None
    else:
        with pretended_gpu() as card:
            yield card
