"""Text and pictures to arrays, and the model's words back to boxes; needs no model."""

from modelwright.processing.batching import ProcessedPrompt, pad_batch
from modelwright.processing.box_constraint import BoxConstraint
from modelwright.processing.box_grammar import BoxGrammar
from modelwright.processing.deepseek_vl2 import DeepseekVLV2Processor
from modelwright.processing.drawing import draw_groundings
from modelwright.processing.grounding import (
    Grounding,
    GroundingReport,
    Skipped,
    format_grounding,
    parse_grounding,
    parse_grounding_report,
)
from modelwright.processing.images import MAX_PIXELS, load_image

__all__ = [
    "MAX_PIXELS",
    "BoxConstraint",
    "BoxGrammar",
    "DeepseekVLV2Processor",
    "Grounding",
    "GroundingReport",
    "ProcessedPrompt",
    "Skipped",
    "draw_groundings",
    "format_grounding",
    "load_image",
    "pad_batch",
    "parse_grounding",
    "parse_grounding_report",
]
