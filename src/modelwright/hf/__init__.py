"""Everything that knows how transformers calls, caches, loads and generates."""
