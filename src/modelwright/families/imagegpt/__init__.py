"""ImageGPT (Chen et al., 2020): pictures drawn pixel by pixel."""
