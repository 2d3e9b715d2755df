"""Dense Hessian blocks, the figures about them, and a check of the curvature."""
