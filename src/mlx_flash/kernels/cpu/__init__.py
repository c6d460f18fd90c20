"""Our kernels for the CPU, compiled by numba: matrix products that read each weight once."""
