"""The optimizers in the comparison: registry, adapters, controls."""
