"""Dense Hessian blocks, measures of them, and a check of the curvature."""
