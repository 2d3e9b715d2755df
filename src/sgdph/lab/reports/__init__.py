"""What reports are made of: entries of tables, their statistics, their tables, curves and pages."""
