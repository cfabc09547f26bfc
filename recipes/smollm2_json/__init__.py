"""A real model of 135 million parameters taught by LoRA to answer as JSON; run ``python -m recipes.smollm2_json``."""
