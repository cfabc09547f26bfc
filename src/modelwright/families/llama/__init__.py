"""Llama (arXiv:2302.13971) and its kin, in the dialects of Hugging Face and MindFormers."""
