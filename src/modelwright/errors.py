"""The errors a user can cause, of three kinds; each is a ``ValueError`` whose message states the rule and both values.

Where a message is about one field and begins with its name, ``field`` is that name, so that a program in which the
field is called otherwise (an option of the command line, a key of a request's JSON) can say so.
"""

from typing import Self

LONGEST = 900
"""Characters of a message: what is given may be long (a picture in base64, a whole file), a sentence is not."""
_END = 300


class UserError(ValueError):
    """What the three have in common; it is not raised itself.

    Args:
        message: the rule and both values; the middle of one longer than `LONGEST` characters is left out.
        field: the one field that the message begins with, if there is one.
    """

    def __init__(self, message: str = "", field: str | None = None):
        super().__init__(_shortened(message))
        self.field = field


class ConfigError(UserError):
    """A configuration breaks a rule: wrong type, unknown key, or values that do not fit each other."""


class CheckpointError(UserError):
    """A checkpoint folder cannot be read as the model it claims to be: missing, misshapen or unsafe content."""


class RequestError(UserError):
    """A request (text, pictures, generation options) cannot be served as it was made."""


class RequestFailed(RequestError):
    """A request that was begun cannot be finished, for instance because the model's scores are no numbers."""

    @classmethod
    def of_scores(cls, dtype: object, nan: bool) -> Self:
        """The error for scores of some type of which one is NaN or plus infinity, or all are minus infinity."""
        kind = str(dtype).removeprefix("torch.")
        said = (
            f"the model's scores of the next token are {'NaN' if nan else 'infinite'} in {kind}, so none can be drawn"
        )
        wider = {"float16": "bfloat16 or float32", "bfloat16": "float32"}.get(kind)
        if wider is None:
            return cls(f"{said}: its weights, or what it was given, are damaged")
        return cls(f"{said}: {kind} may not hold what the model computes; load it in {wider}")


class GuideError(RequestError):
    """What an output is to keep to (a schema, an expression, a grammar) cannot be followed.

    Args:
        message: the reason.
        too_complex: it is sound, as far as it was read, and asks for too much time or memory.
    """

    def __init__(self, message: str = "", field: str | None = None, *, too_complex: bool = False):
        super().__init__(message, field)
        self.too_complex = too_complex


def _shortened(message: str) -> str:
    if len(message) <= LONGEST:
        return message
    gap = f" ... ({len(message)} characters) ... "
    return message[: LONGEST - _END - len(gap)] + gap + message[-_END:]
