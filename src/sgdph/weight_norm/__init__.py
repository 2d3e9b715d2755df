"""Weight normalisation: apply it, fold it, choose the layers."""
