"""Reports: the claims of the post, the orders of samplers, the table of recipes, runs, the demo."""
