"""The cases of :mod:`tests.judges.transformers_tests`: each family as transformers' testers ask for it."""

import unittest
from typing import Any, ClassVar

import torch
from their_tests import test_modeling_common  # pyright: ignore[reportMissingImports]
from their_tests.test_configuration_common import ConfigTester  # pyright: ignore[reportMissingImports]
from their_tests.test_modeling_common import ModelTesterMixin  # pyright: ignore[reportMissingImports]

from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.deepseek_v2.model import (
    DeepseekV2ForCausalLM,
    DeepseekV2ForSequenceClassification,
    DeepseekV2Model,
)
from modelwright.families.deepseek_vl2.config import DeepseekVLV2Config
from modelwright.families.deepseek_vl2.model import DeepseekVLV2ForCausalLM
from modelwright.families.imagegpt.config import ImageGPTConfig
from modelwright.families.imagegpt.model import (
    ImageGPTForCausalImageModeling,
    ImageGPTForImageClassification,
    ImageGPTModel,
)
from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.model import LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel
from modelwright.layers.checkpointed import CheckpointedLayer
from tests.fakes import MOE, VL2, tokens, vl2_inputs
from tests.imagegpts import TINY
from tests.llamas import HUGGING_FACE

test_modeling_common.GradientCheckpointingLayer = CheckpointedLayer  # ours, which needs no import of transformers
REASONS = {
    "test_bc_cache_name_forward": "either name of the cache is served for good, so none is called deprecated",
    "test_generation_tester_mixin_inheritance": "the source package has no tests of generation",
    "test_model_rope_scaling_from_config_0_linear": "rope_parameters is replaced whole: another field says the same",
    "test_model_rope_scaling_from_config_1_dynamic": "rope_parameters is replaced whole: another field says the same",
    "test_model_rope_scaling_from_config_2_yarn": "rope_parameters is replaced whole: another field says the same",
    "test_load_with_mismatched_shapes": "AutoModelForSequenceClassification makes transformers' own class",
    "test_can_load_ignoring_mismatched_shapes": "without the argument another shape is a CheckpointError, a ValueError",
    "test_base_model_prefix_loads_base_weights": "a checkpoint without the head is refused: it would be random",
    "test_correct_missing_keys": "a checkpoint without the head is refused: it would be random",
    "test_model_weights_reload_no_missing_tied_weights": "a checkpoint without weights is refused, all being random",
}
"""Why tests do not hold, in every family."""
REASONS_OF_IMAGEGPT = {"test_resize_embeddings_untied": "its head has one colour less than there are tokens: no start"}
REASONS_OF_VL2 = {
    "test_config": "a part is written as DeepSeek wrote it, without what transformers adds to a whole config",
    "test_inputs_embeds": "embeddings hold the pictures already: pictures beside them are refused",
}


class Tester:
    """What transformers' tests ask of a family: a tiny config and inputs of it."""

    is_training = True
    batch_size, seq_length = 3, 7
    hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 4

    def __init__(self, config_class: Any, fields: dict[str, Any], vocab: int = 64) -> None:
        self.config_class, self.fields, self.vocab = config_class, fields, vocab

    def get_config(self) -> Any:
        return self.config_class(**self.fields)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        ids = tokens(self.batch_size, self.seq_length, vocab=self.vocab)
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class VL2Tester(Tester):
    @property
    def seq_length(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.prepare_config_and_inputs_for_common()[1]["input_ids"].shape[1]

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        return self.get_config(), vl2_inputs([[(1, 1)]] * self.batch_size)


class Common(ModelTesterMixin):
    """What holds for all families: attention weights are never written out, and nothing is fetched."""

    has_attentions = False
    reasons: ClassVar[dict[str, str]] = {}
    test_all_params_have_gradient = False
    tester: ClassVar[Any]
    common: ClassVar[list[str] | None] = None

    def setUp(self) -> None:
        name = getattr(self, "_testMethodName", "")
        if reason := (REASONS | self.reasons).get(name):
            raise unittest.SkipTest(f"left out: {reason}")
        self.model_tester: Any = self.tester()
        self.config_tester = ConfigTester(
            self,
            config_class=self.model_tester.config_class,
            has_text_modality=self.common is None,
            common_properties=self.common,
            **self.model_tester.fields,
        )

    def test_config(self) -> None:
        self.config_tester.run_common_tests()


class LlamaTest(Common, unittest.TestCase):
    all_model_classes = (LlamaModel, LlamaForCausalLM, LlamaForSequenceClassification)
    tester = staticmethod(lambda: Tester(LlamaConfig, HUGGING_FACE | {"pad_token_id": 0}))


class DeepseekV2Test(Common, unittest.TestCase):
    all_model_classes = (DeepseekV2Model, DeepseekV2ForCausalLM, DeepseekV2ForSequenceClassification)
    tester = staticmethod(lambda: Tester(DeepseekV2Config, MOE | {"pad_token_id": 0}))


class ImageGPTTest(Common, unittest.TestCase):
    all_model_classes = (ImageGPTModel, ImageGPTForCausalImageModeling, ImageGPTForImageClassification)
    reasons = REASONS_OF_IMAGEGPT
    tester = staticmethod(lambda: Tester(ImageGPTConfig, TINY, vocab=16))

    def setUp(self) -> None:
        super().setUp()
        self.model_tester.hidden_size, self.model_tester.num_attention_heads = TINY["n_embd"], TINY["n_head"]


class DeepseekVL2Test(Common, unittest.TestCase):
    all_model_classes = (DeepseekVLV2ForCausalLM,)
    tester = staticmethod(lambda: VL2Tester(DeepseekVLV2Config, VL2))
    reasons = REASONS_OF_VL2
    common = []
    _is_composite = True

    def _prepare_for_class(self, inputs_dict: Any, model_class: Any, return_labels: bool = False) -> dict[str, Any]:
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        return inputs | ({"labels": inputs["input_ids"]} if return_labels else {})
