"""The types of the public names, for type checkers; ``__init__.py`` imports the same names lazily."""

from modelwright import zoo as zoo
from modelwright.checkpoints.quantized_model import quantize_model as quantize_model
from modelwright.configs import MoEConfig as MoEConfig
from modelwright.configs import ParallelConfig as ParallelConfig
from modelwright.engine.async_engine import AsyncEngine as AsyncEngine
from modelwright.engine.engine import Engine as Engine
from modelwright.engine.engine_config import EngineConfig as EngineConfig
from modelwright.engine.params import Guide as Guide
from modelwright.engine.params import SamplingParams as SamplingParams
from modelwright.errors import CheckpointError as CheckpointError
from modelwright.errors import ConfigError as ConfigError
from modelwright.errors import RequestError as RequestError
from modelwright.families.deepseek_v2.config import DeepseekV2Config as DeepseekV2Config
from modelwright.families.deepseek_v2.model import DeepseekV2ForCausalLM as DeepseekV2ForCausalLM
from modelwright.families.deepseek_v2.model import (
    DeepseekV2ForSequenceClassification as DeepseekV2ForSequenceClassification,
)
from modelwright.families.deepseek_v2.model import DeepseekV2Model as DeepseekV2Model
from modelwright.families.deepseek_vl2.config import DeepseekVLV2Config as DeepseekVLV2Config
from modelwright.families.deepseek_vl2.config import MlpProjectorConfig as MlpProjectorConfig
from modelwright.families.deepseek_vl2.config import VisionEncoderConfig as VisionEncoderConfig
from modelwright.families.deepseek_vl2.model import DeepseekVLV2ForCausalLM as DeepseekVLV2ForCausalLM
from modelwright.families.deepseek_vl2.processor import DeepseekVLV2Processor as DeepseekVLV2Processor
from modelwright.families.imagegpt.config import ImageGPTConfig as ImageGPTConfig
from modelwright.families.imagegpt.model import ImageGPTForCausalImageModeling as ImageGPTForCausalImageModeling
from modelwright.families.imagegpt.model import ImageGPTForImageClassification as ImageGPTForImageClassification
from modelwright.families.imagegpt.model import ImageGPTModel as ImageGPTModel
from modelwright.families.llama.config import LlamaConfig as LlamaConfig
from modelwright.families.llama.model import LlamaForCausalLM as LlamaForCausalLM
from modelwright.families.llama.model import LlamaForSequenceClassification as LlamaForSequenceClassification
from modelwright.families.llama.model import LlamaModel as LlamaModel
from modelwright.hf.registry import register as register
from modelwright.processing import Grounding as Grounding
from modelwright.processing import draw_groundings as draw_groundings
from modelwright.processing import parse_grounding as parse_grounding
from modelwright.processing.palette import fit_clusters as fit_clusters
from modelwright.serving.load import load as load

__version__: str
