"""DeepSeek-V2: latent attention and mixture of experts (arXiv:2405.04434)."""

from modelwright.families.record import Family, decoder_parts

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}User: {{ message.content }}\n\n"
    "{% elif message.role == 'assistant' %}Assistant: {{ message.content }}{{ eos_token }}"
    "{% else %}{{ message.content }}\n\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""DeepSeek-V2's chat format, for checkpoints that come without a template."""

FAMILY = Family(
    name="deepseek_v2",
    model_types=("deepseek_v2",),
    architectures={
        "DeepseekV2Model": "modelwright.families.deepseek_v2.model:DeepseekV2Model",
        "DeepseekV2ForCausalLM": "modelwright.families.deepseek_v2.model:DeepseekV2ForCausalLM",
        "DeepseekV2ForSequenceClassification": (
            "modelwright.families.deepseek_v2.model:DeepseekV2ForSequenceClassification"
        ),
    },
    causal="DeepseekV2ForCausalLM",
    network="modelwright.families.deepseek_v2.network:DeepseekV2Causal",
    config="modelwright.families.deepseek_v2.config:DeepseekV2Config",
    counts="modelwright.families.deepseek_v2.plan:count_deepseek_v2",
    run_settings="modelwright.families.deepseek_v2.plan:run_settings",
    chat_template="modelwright.families.deepseek_v2:CHAT_TEMPLATE",
    cache="modelwright.families.deepseek_v2.decoding:cache_layout",
    decoding="modelwright.families.deepseek_v2.decoding:decoding_rules",
    slicing="modelwright.families.deepseek_v2.slicing:slicing_rules",
    export="modelwright.families.deepseek_v2.export:DeepseekV2OnnxConfig",
    parts=decoder_parts(),
    gguf="modelwright.families.deepseek_v2.gguf:GGUF",
)
