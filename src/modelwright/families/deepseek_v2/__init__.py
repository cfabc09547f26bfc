"""DeepSeek-V2 (arXiv:2405.04434): latent attention and mixture of experts."""
