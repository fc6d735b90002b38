"""Beyond the paper: steps around and after the layers, which compose with any method."""
