"""``llava-api finetune``: the command line of training."""
