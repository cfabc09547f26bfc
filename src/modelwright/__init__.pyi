"""The types of the public names, for type checkers; ``__init__.py`` imports the same names lazily."""

from modelwright import zoo as zoo
from modelwright.checkpoints import load as load
from modelwright.configs import DeepseekV2Config as DeepseekV2Config
from modelwright.configs import DeepseekVLV2Config as DeepseekVLV2Config
from modelwright.configs import ImageGPTConfig as ImageGPTConfig
from modelwright.configs import LlamaConfig as LlamaConfig
from modelwright.configs import MlpProjectorConfig as MlpProjectorConfig
from modelwright.configs import MoEConfig as MoEConfig
from modelwright.configs import ParallelConfig as ParallelConfig
from modelwright.configs import VisionEncoderConfig as VisionEncoderConfig
from modelwright.engine.async_engine import AsyncEngine as AsyncEngine
from modelwright.engine.engine import Engine as Engine
from modelwright.engine.engine_config import EngineConfig as EngineConfig
from modelwright.engine.params import Guide as Guide
from modelwright.engine.params import SamplingParams as SamplingParams
from modelwright.errors import CheckpointError as CheckpointError
from modelwright.errors import ConfigError as ConfigError
from modelwright.errors import RequestError as RequestError
from modelwright.models import DeepseekV2ForCausalLM as DeepseekV2ForCausalLM
from modelwright.models import DeepseekV2ForSequenceClassification as DeepseekV2ForSequenceClassification
from modelwright.models import DeepseekV2Model as DeepseekV2Model
from modelwright.models import DeepseekVLV2ForCausalLM as DeepseekVLV2ForCausalLM
from modelwright.models import ImageGPTForCausalImageModeling as ImageGPTForCausalImageModeling
from modelwright.models import ImageGPTForImageClassification as ImageGPTForImageClassification
from modelwright.models import ImageGPTModel as ImageGPTModel
from modelwright.models import LlamaForCausalLM as LlamaForCausalLM
from modelwright.models import LlamaForSequenceClassification as LlamaForSequenceClassification
from modelwright.models import LlamaModel as LlamaModel
from modelwright.models.quantized import quantize_model as quantize_model
from modelwright.models.registry import register as register
from modelwright.processing import DeepseekVLV2Processor as DeepseekVLV2Processor
from modelwright.processing import Grounding as Grounding
from modelwright.processing import draw_groundings as draw_groundings
from modelwright.processing import parse_grounding as parse_grounding

__version__: str
