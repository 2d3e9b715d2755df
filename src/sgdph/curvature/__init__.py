"""From a loss to one vector per Newton parameter, kept until the step."""
