"""What a run is, and how that is written to YAML."""
