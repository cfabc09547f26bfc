"""Training: one optimizer step after the other, from a run's config and its batches to weights that others load.

`trainer.py` is the loop, and names what it is made of.
"""
