"""The recipe of the bundled demo checkpoints: images drawn by code, questions, tokenizer, training, exam.

Nothing here ships in the package. ``make demo-checkpoints`` runs it.
"""
