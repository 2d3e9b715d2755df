"""Slow, plain oracles that the fast code is compared with."""
