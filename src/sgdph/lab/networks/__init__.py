"""The networks and their names."""
