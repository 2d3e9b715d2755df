"""The options of the command line, and their conversion to a configuration."""
