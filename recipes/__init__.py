"""Training recipes: scripts that make the models we ship; run from the repository root, never installed."""
