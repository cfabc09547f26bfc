"""What a shell offers for a value when Tab is pressed; where nothing fits, it offers files. It imports little."""

from modelwright import zoo
from modelwright.cli.quick_checks import DEVICES, DTYPES


def models(incomplete: str) -> list[str]:
    """Names of the zoo."""
    return [name for name in zoo.names() if name.startswith(incomplete)]


def dtypes(incomplete: str) -> list[str]:
    """Number types to compute in."""
    return [name for name in DTYPES if name.startswith(incomplete)]


def devices(incomplete: str) -> list[str]:
    """Devices as torch calls them, here or not."""
    return [name for name in DEVICES if name.startswith(incomplete)]
