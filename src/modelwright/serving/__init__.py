"""What the command line and the server share: models by name, messages to prompts, defaults, ranks, streams of text."""
