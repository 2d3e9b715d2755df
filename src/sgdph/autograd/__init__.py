"""Functions that read torch's graph, and second derivatives that compute only what is needed."""
