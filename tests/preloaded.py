"""Modules that are already imported in processes that tests start by the method ``forkserver``.

Each process is a fork of one that has imported these modules and done nothing else. The imports
take longer than the work of most processes. Modules that are not installed are skipped.
"""

PRELOADED = [
    # Creating the first optimizer of a process imports this.
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.nn.parallel",
    "sgdph",
    "sgdph.lab.data.embedded",
    "sgdph.lab.sweep.pool",
    "sgdph.lab.tune.trials",
]
