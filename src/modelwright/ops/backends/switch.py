"""The environment variable that turns all kernels off."""

import os

SWITCH = "MODELWRIGHT_KERNELS"
ON, OFF = ("1", "on", "true", "yes", ""), ("0", "off", "false", "no")


class SwitchError(ValueError):
    """The switch is set to what is neither on nor off."""


def switched_off() -> str:
    """Why there are no kernels if they are switched off, else nothing.

    Raises:
        SwitchError: the variable has another value than those of ``ON`` and ``OFF``, in small letters or capitals.
    """
    value = os.environ.get(SWITCH, "")
    if value.strip().lower() in ON:
        return ""
    if value.strip().lower() in OFF:
        return f"{SWITCH}={value}"
    raise SwitchError(f"{SWITCH} must be {', '.join(filter(None, ON))} or {', '.join(OFF)}, got {value!r}")
