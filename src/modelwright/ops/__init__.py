"""Pure tensor functions, the slow reference and the fast path side by side; no modules, no state, no configs."""
