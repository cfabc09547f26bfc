"""Weights that other programs have quantized, read as the numbers that they stand for: a file for each way to store."""
