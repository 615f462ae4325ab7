"""The mesh, and what each of its axes does to a model."""
