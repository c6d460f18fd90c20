"""Other programs as clients of `mlx-flash serve`: what each is told, and where it reads that."""
