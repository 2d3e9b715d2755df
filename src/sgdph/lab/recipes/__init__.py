"""The paper's tables and figures as data, one YAML file each, for :mod:`sgdph.lab.sweep.recipe`."""
