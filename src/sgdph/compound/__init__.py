"""Several optimizers as one: each steps its own parameters; saved and scheduled together."""
