"""What computes: compiled CPU kernels and Triton kernels, each saying what it serves; torch serves the rest."""
