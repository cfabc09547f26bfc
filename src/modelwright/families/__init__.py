"""One folder a family: its config, model, plan, export, processor and names on disk."""
