"""llama.cpp's GGUF files, read and written by the ``gguf`` package; each family says what its tensors are called."""
