"""Pictures to language-model rows: the SigLIP tower, the projector, and the arrangement of tiles."""

from modelwright.vision.initialise import initialise_tower
from modelwright.vision.projector import MlpProjector
from modelwright.vision.siglip import VisionTower
from modelwright.vision.tiles import TileRows, arrange_1d, arrange_2d, picture_rows

__all__ = ["MlpProjector", "TileRows", "VisionTower", "arrange_1d", "arrange_2d", "initialise_tower", "picture_rows"]
