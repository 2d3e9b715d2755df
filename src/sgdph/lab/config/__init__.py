"""The configuration of a run, and its YAML form."""
