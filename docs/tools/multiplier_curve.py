"""Draws ``docs/assets/multiplier.svg``: what the multiplier is, as a function of the curvature."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

EPS = 1e-4

mpl.rcParams["svg.hashsalt"] = "sgdph"
mpl.rcParams["svg.fonttype"] = "none"
figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
curvature = np.logspace(-6, 1, 400)
for tau, colour in ((1e-2, "#b3541e"), (1e-3, "#2b4b9b"), (1e-4, "#3b7d4f")):
    axes.loglog(curvature, tau / (curvature + EPS), color=colour, lw=2)
    axes.annotate(f"τ = {tau:g}", (2e-6, tau / EPS * 1.25), color=colour)
axes.axhline(1, color="#666", lw=1, ls="--")
axes.annotate("SGD's own step", (0.35, 1.2), color="#666")
axes.set_ylim(1e-5, 400)
axes.set_xlabel("average curvature of one channel, D̂")
axes.set_ylabel("multiplier τ / (D̂ + ε)")
axes.set_title("ε = 1e-4; the cap at the left is τ/ε", fontsize=10)
axes.grid(alpha=0.3)
axes.spines[["top", "right"]].set_visible(False)
path = Path(__file__).parents[1] / "assets" / "multiplier.svg"
figure.savefig(path, metadata={"Date": None})
