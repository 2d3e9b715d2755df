"""Many runs: recipes, the plan, the workers, the estimate."""
