"""A decoder cut down to one rank's part, by the rules of its layers and of its family."""

from typing import Any

from modelwright.families import family_of, resolve
from modelwright.layers import MoE
from modelwright.parallel import RULES, Mesh, Rule, expert_rule, slice_head, slice_modules


def slice_decoder(decoder: Any, mesh: Mesh) -> None:
    """Cut a built decoder down, in place, to this rank's part; a mesh of one leaves it whole.

    It can then compute only together with the others'. What sees pictures is no part of the decoder and stays whole.

    Raises:
        ConfigError: the ranks do not divide its heads, or a layer cannot be cut.
    """
    if mesh.size == 1:
        return
    rules: dict[type, Rule] = {**RULES, MoE: expert_rule(mesh.size)}
    family = family_of(decoder)
    if family.slicing is not None:
        rules |= resolve(family.slicing)(decoder.config, mesh)
    slice_modules(decoder, mesh, rules)
    slice_head(decoder.get_output_embeddings(), mesh)
    decoder.requires_grad_(False)
