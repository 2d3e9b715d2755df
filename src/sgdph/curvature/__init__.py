"""Curvature from a loss: one vector per Newton parameter, kept until the step."""
