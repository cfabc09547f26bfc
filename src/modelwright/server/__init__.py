"""HTTP in front of the engine: an OpenAI-compatible ASGI application that is given a model and loads nothing itself."""
