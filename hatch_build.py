"""How the README looks on a package index, where the files that it links to are not."""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"\[(?P<words>[^\]]+)\]\((?!https?:|#)(?P<file>[^)#\s]+)[^)]*\)")
PICTURE = re.compile(r"^!" + LINK.pattern + r"\n\n?", re.MULTILINE)


def as_description(readme: str) -> str:
    """The README without its pictures, with the files of the source named where it links to them."""
    return LINK.sub(_named, PICTURE.sub("", readme))


def _named(link: re.Match[str]) -> str:
    words, file = link["words"], link["file"]
    return f"`{file}`" if words in (file, file.rstrip("/"), f"{Path(file).parent}/") else f"{words} (`{file}`)"


class Description(MetadataHookInterface):
    """Gives the description that a wheel and an sdist carry."""

    def update(self, metadata: dict) -> None:
        readme = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": as_description(readme)}
