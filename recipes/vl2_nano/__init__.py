"""How the small DeepSeek-VL2 in the package is made: drawn pictures, asked questions, training and measurement."""
