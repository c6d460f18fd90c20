"""The process that clients talk to. It holds no model and imports no MLX."""
