"""Serves a model: a gateway that speaks HTTP, and a worker process that owns the model."""
