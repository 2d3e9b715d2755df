"""What processes of tests have imported that are started by the method ``forkserver``.

They are forks of one that has imported these and has done nothing else, for importing takes longer
than what most of them do. What is not installed is left out.
"""

PRELOADED = [
    # The first optimizer of a process imports it.
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.nn.parallel",
    "sgdph",
    "sgdph.lab.data.embedded",
    "sgdph.lab.sweep.pool",
    "sgdph.lab.tune.trials",
]
