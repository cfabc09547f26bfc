"""DeepSeek-VL2: a vision tower and a projector in front of the DeepSeek-V2 decoder (arXiv:2412.10302)."""

from modelwright.families.record import Family, decoder_parts

FAMILY = Family(
    name="deepseek_vl2",
    model_types=("deepseek_vl_v2",),
    architectures={"DeepseekVLV2ForCausalLM": "modelwright.families.deepseek_vl2.model:DeepseekVLV2ForCausalLM"},
    causal="DeepseekVLV2ForCausalLM",
    network="modelwright.families.deepseek_vl2.network:DeepseekVLV2Network",
    language="language",
    config="modelwright.families.deepseek_vl2.config:DeepseekVLV2Config",
    counts="modelwright.families.deepseek_vl2.plan:count_deepseek_vl2",
    run_settings="modelwright.families.deepseek_v2.plan:run_settings",
    cache="modelwright.families.deepseek_v2.decoding:cache_layout",
    decoding="modelwright.families.deepseek_v2.decoding:decoding_rules",
    processor="modelwright.families.deepseek_vl2.processor:read_processor",
    prompts="modelwright.families.deepseek_vl2.prompts:read_prompts",
    processor_class="modelwright.families.deepseek_vl2.processor:DeepseekVLV2Processor",
    auto_classes=("AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM"),
    slicing="modelwright.families.deepseek_v2.slicing:slicing_rules",
    parts={
        "vision": r"^vision\.",
        "projector": r"^projector\.",
        "marks": r"^(image_newline|view_seperator|tile_indicators)$",
        **decoder_parts(r"language\."),
    },
    frozen=("vision",),
    export="modelwright.families.deepseek_vl2.export:DeepseekVLV2OnnxConfig",
)
