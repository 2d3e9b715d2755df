"""The optimizers of the comparison: registry, adapters, controls."""
