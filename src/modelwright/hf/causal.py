"""A model that draws tokens as one of transformers' models, with ``generate()``."""

from modelwright.hf.causal_network import CausalNetwork
from modelwright.hf.generation import EitherNameGenerationMixin
from modelwright.hf.pretrained import ModelwrightPreTrainedModel


class GeneratingModel(ModelwrightPreTrainedModel, EitherNameGenerationMixin):
    """A model that transformers' ``generate()`` draws tokens from."""

    draws_tokens = True


class CausalModel(CausalNetwork, GeneratingModel):
    """A :class:`Decoder` under ``base_model_prefix``, and a head over its tokens."""

    def post_init(self) -> None:
        """As transformers', told whether labels are shifted, so that ``Trainer`` counts those that are foreseen."""
        super().post_init()
        self.loss_type = None if self.takes_aligned_labels else "ForCausalLM"
