"""The mean over ranks, and what DistributedDataParallel must not notice."""
