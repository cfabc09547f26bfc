"""ImageGPT: a GPT-2 whose tokens are colours (Chen et al., ICML 2020)."""

from modelwright.families.record import Family

FAMILY = Family(
    name="imagegpt",
    model_types=("imagegpt",),
    architectures={
        "ImageGPTModel": "modelwright.families.imagegpt.model:ImageGPTModel",
        "ImageGPTForCausalImageModeling": "modelwright.families.imagegpt.model:ImageGPTForCausalImageModeling",
        "ImageGPTForImageClassification": "modelwright.families.imagegpt.model:ImageGPTForImageClassification",
    },
    causal="ImageGPTForCausalImageModeling",
    network="modelwright.families.imagegpt.network:ImageGPTCausal",
    draws="pixels",
    config="modelwright.families.imagegpt.config:ImageGPTConfig",
    counts="modelwright.families.imagegpt.plan:count_imagegpt",
    cache="modelwright.families.imagegpt.decoding:cache_layout",
    decoding="modelwright.families.imagegpt.decoding:decoding_rules",
    processor="modelwright.families.imagegpt.processor:read_processor",
    slicing="modelwright.families.imagegpt.slicing:slicing_rules",
    parts={
        "embedding": r"^(transformer\.)?(wte|wpe)\.",
        "attention": r"^(transformer\.)?h\.\d+\.attn\.",
        "dense": r"^(transformer\.)?h\.\d+\.mlp\.",
        "norms": r"^(transformer\.)?(h\.\d+\.)?ln_\w+\.",
        "head": r"^(lm_head|score)\.",
    },
    export="modelwright.families.imagegpt.export:ImageGPTOnnxConfig",
)
