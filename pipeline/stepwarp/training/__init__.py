"""Training of registrars: recipes, the loop, its checkpoints, and what it is judged by."""
