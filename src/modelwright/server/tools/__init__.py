"""Calls of tools: the grammar that they are drawn by, and the reader that finds them in the text; no model is known."""
