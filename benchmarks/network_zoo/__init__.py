"""What ``benchmarks/zoo.py`` runs: networks of other packages, and the comparison with torch."""
