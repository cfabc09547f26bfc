"""Keys of files that other programs wrote: which of them say nothing to us, and what a person should know of these."""

import difflib
from collections.abc import Collection, Mapping
from typing import Any

NOTES = ("processor_class", "auto_map", "chat_template", "transformers_version", "image_size")
"""Keys of hub files that say nothing that the settings do not say."""
_ALIKE = 0.8
"""How alike two names are, of 1, so that one may be a misspelling of the other."""


def unread(settings: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The settings of a file that are none of ours: a program wrote them that may know more, so they are kept."""
    return {name: value for name, value in settings.items() if name not in known and name not in NOTES}


def without_effect(settings: Mapping[str, Any], known: Collection[str]) -> dict[str, str]:
    """Each of the `unread` settings that says something, with the reason that it changes nothing."""
    reasons = {}
    for name, value in settings.items():
        near = meant(name, known)
        if value is not None:
            reasons[name] = "no setting of this processor" + (f'; did you mean "{near}"?' if near else "")
    return reasons


def meant(name: str, known: Collection[str]) -> str | None:
    """The setting that a name resembles."""
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=_ALIKE)), None)
