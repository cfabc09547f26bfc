"""Llama 1 to 3.3 (arXiv:2302.13971, 2407.21783) in the dialects of Hugging Face and of MindFormers, and its kin."""

from modelwright.families.record import Dialect, Family, decoder_parts

_MODEL = "modelwright.families.llama.model"
_DECODER, _CAUSAL, _CLASSIFIER = (
    f"{_MODEL}:{name}" for name in ("LlamaModel", "LlamaForCausalLM", "LlamaForSequenceClassification")
)

FAMILY = Family(
    name="llama",
    model_types=("llama", "mistral", "qwen2"),  # kin are Llamas where no window slides, which the config checks
    architectures={
        "LlamaModel": _DECODER,
        "LlamaForCausalLM": _CAUSAL,
        "LlamaForSequenceClassification": _CLASSIFIER,
        "MistralModel": _DECODER,
        "MistralForCausalLM": _CAUSAL,
        "MistralForSequenceClassification": _CLASSIFIER,
        "MixtralModel": _DECODER,
        "MixtralForCausalLM": _CAUSAL,
        "MixtralForSequenceClassification": _CLASSIFIER,
        "Qwen2Model": _DECODER,
        "Qwen2ForCausalLM": _CAUSAL,
        "Qwen2ForSequenceClassification": _CLASSIFIER,
    },
    causal="LlamaForCausalLM",
    network="modelwright.families.llama.network:LlamaCausal",
    config="modelwright.families.llama.config:LlamaConfig",
    counts="modelwright.families.llama.plan:count_llama",
    run_settings="modelwright.families.llama.plan:run_settings",
    cache="modelwright.families.llama.decoding:cache_layout",
    decoding="modelwright.families.llama.decoding:decoding_rules",
    export="modelwright.families.llama.export:LlamaOnnxConfig",
    dialect=Dialect(
        name="mindformers",
        speaks="modelwright.families.llama.config.dialects:speaks_mindformers",
        read_config="modelwright.families.llama.config:LlamaConfig.from_mindformers",
        tensors="modelwright.families.llama.mindformers:MINDFORMERS",
    ),
    parts=decoder_parts(),
    gguf="modelwright.families.llama.gguf:GGUF",
)
