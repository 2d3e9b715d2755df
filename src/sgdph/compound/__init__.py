"""Several optimizers as one: each steps its own parameters; all are saved and scheduled as one."""
