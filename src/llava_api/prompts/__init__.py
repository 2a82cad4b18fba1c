"""Prompts and token ids exactly as each LLaVA checkpoint was trained on them."""
