"""From an image part of a request to the exact pixels the checkpoint was trained on."""
