"""Reads expert bytes into buffers that it is handed. Threads live here; MLX does not."""
