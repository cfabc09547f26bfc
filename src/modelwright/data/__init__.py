"""Rows of files as training examples, and how they are drawn; nothing here knows a model."""
