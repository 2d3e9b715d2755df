"""The command line's options, and how they become a configuration."""
