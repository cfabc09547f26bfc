"""The boxes of an answer: found, and drawn into the file of ``--draw``."""

from io import BytesIO
from pathlib import Path

from PIL import Image

from modelwright.cli.conversation import Picture
from modelwright.cli.files import check_place, write_whole
from modelwright.errors import RequestError
from modelwright.processing import GroundingReport, draw_groundings, parse_grounding_report


def check_target(path: Path) -> None:
    """Raise a RequestError unless a picture can be written to ``path``, as far as that can be told before."""
    Image.init()
    kinds = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.SAVE}
    if path.suffix.lower() not in kinds:
        raise RequestError(f"--draw {path}: the name must end like a picture's, for example .png or .jpg")
    check_place(path, f"--draw {path}")


def find_boxes(text: str, pictures: tuple[Picture, ...]) -> GroundingReport:
    """The boxes of an answer, in pixels of the last picture, and what was malformed; none without a picture."""
    if not pictures:
        return GroundingReport([], [])
    return parse_grounding_report(text, [picture.image.size for picture in pictures])


def draw_boxes(path: Path, report: GroundingReport, pictures: tuple[Picture, ...]) -> str:
    """Write the last picture with its boxes, if there are any; returns a sentence on what was done."""
    if not pictures:
        return "nothing to draw on: no picture was shown"
    if not report.groundings:
        return f"nothing to draw: the answer holds no boxes, so {path} was not written"
    with BytesIO() as content:
        try:
            kind = Image.registered_extensions()[path.suffix.lower()]
            draw_groundings(pictures[-1].image, report.groundings).save(content, format=kind)
        except (OSError, ValueError) as error:  # a size or a mode that this kind of file does not have
            raise RequestError(f"--draw {path}: the picture cannot be written: {error}") from error
        write_whole(path, content.getvalue(), f"--draw {path}")
    count = sum(len(grounding.boxes) for grounding in report.groundings)
    return f"{count} box{'es' * (count != 1)} drawn in {path}"
