"""``sgdph tune``: search each optimizer's settings with equal budgets, on held-out images."""
