"""The exit statuses of commands that could not do what they were asked; 130 is that of Ctrl-C."""

import errno

from modelwright.errors import RequestFailed, UserError

FAILED = 1
"""What was begun could not be finished: the model's scores are no numbers, or the system lets nothing be written."""
USER_ERROR = 2
"""What was asked cannot be served as it was asked; also the status of a wrong option."""
REFUSALS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EBADF,
    errno.ENOMEM,
    errno.EMFILE,
)
"""What a system answers that has the file but no room, no right or no device for it."""


def status_of(error: UserError | OSError) -> int:
    """The status with which a command ends for an error."""
    cause = error if isinstance(error, OSError) else error.__cause__
    refused = isinstance(cause, OSError) and cause.errno in REFUSALS
    return FAILED if refused or isinstance(error, RequestFailed) else USER_ERROR
