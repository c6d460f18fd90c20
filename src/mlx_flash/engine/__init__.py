"""Use cases: find, load and run a model."""
