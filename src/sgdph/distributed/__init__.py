"""The mean over ranks, and the support of DDP, FSDP2 and tensors split over ranks."""
