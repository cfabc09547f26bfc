"""Teaches vl2-nano a new shape and a new colour by LoRA with experts, and measures what it then knows."""
