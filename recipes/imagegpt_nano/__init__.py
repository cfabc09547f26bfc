"""How the small ImageGPT in the package is made: drawn digits and shapes, training, a judge, measurement."""
