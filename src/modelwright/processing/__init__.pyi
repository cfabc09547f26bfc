"""The types of the public names, for type checkers; ``__init__.py`` imports the same names lazily."""

from modelwright.processing.batching import ProcessedPrompt as ProcessedPrompt
from modelwright.processing.batching import pad_batch as pad_batch
from modelwright.processing.box_constraint import BoxConstraint as BoxConstraint
from modelwright.processing.box_grammar import BoxGrammar as BoxGrammar
from modelwright.processing.drawing import draw_groundings as draw_groundings
from modelwright.processing.grounding import Grounding as Grounding
from modelwright.processing.grounding import GroundingReport as GroundingReport
from modelwright.processing.grounding import format_grounding as format_grounding
from modelwright.processing.grounding import parse_grounding as parse_grounding
from modelwright.processing.grounding import parse_grounding_report as parse_grounding_report
from modelwright.processing.grounding_reader import Skipped as Skipped
from modelwright.processing.images import MAX_PIXELS as MAX_PIXELS
from modelwright.processing.images import load_image as load_image
from modelwright.processing.palette import fit_clusters as fit_clusters
from modelwright.processing.pixels import Pixels as Pixels
