"""The libraries' own warnings and bars, kept from users who can act on none of them."""

import logging
import sys
import warnings

from transformers.utils import logging as transformers_logging


def quieten_libraries() -> None:
    """Let transformers and torch say nothing, and our own loggers errors alone; ``python -W`` still has its way."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("modelwright").setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
