"""The networks of other packages that ``benchmarks/zoo.py`` compares with torch."""
