"""DeepSeek-VL2 (arXiv:2412.10302): a tower for pictures before a DeepSeek-V2."""
