"""The three errors a user can cause; each is a ``ValueError`` whose message states the rule and both values."""


class ConfigError(ValueError):
    """A configuration breaks a rule: wrong type, unknown key, or values that do not fit each other."""


class CheckpointError(ValueError):
    """A checkpoint folder cannot be read as the model it claims to be: missing, misshapen or unsafe content."""


class RequestError(ValueError):
    """A request (text, pictures, generation options) cannot be served as it was made."""
