"""What is asked of torch's graph, and second derivatives at the cost of a product."""
