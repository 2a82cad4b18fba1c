"""How many parameters a checkpoint has, and what memory they take: from its config alone, without weights."""

import math
from dataclasses import dataclass

from llava_api.checkpoints.inspect import Checkpoint
from llava_api.errors import StartupError

BYTES = {"float32": 4.0, "float16 / bfloat16": 2.0, "8 bit": 1.0, "4 bit": 0.5}


@dataclass(frozen=True, slots=True)
class Parameters:
    total: int
    quantizable: int
    """Of these, the linear layers of the text model: what AWQ, GPTQ, int8 and fp8 make smaller."""

    def memory_bytes(self) -> dict[str, int]:
        """Bytes of the weights by precision; what is not quantized stays at 16 bit. The KV cache comes on top."""
        made = {}
        for name, size in BYTES.items():
            rest = max(size, 2.0)
            made[name] = int(self.quantizable * size + (self.total - self.quantizable) * rest)
        return made


def count_parameters(checkpoint: Checkpoint) -> Parameters:
    """Built by transformers on its meta device, where a tensor has a shape and no memory. Raises StartupError."""
    try:
        import torch
        from transformers import AutoConfig, AutoModelForImageTextToText

        settings = {name: value for name, value in checkpoint.config.items() if name != "quantization_config"}
        config = AutoConfig.for_model(**settings)
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
    except (ImportError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise StartupError(f"the checkpoint's config.json describes no model: {str(error).splitlines()[0]}") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    layers = [shape for name, shape in shapes.items() if "language_model.layers" in name and len(shape) == 2]
    return Parameters(sum(map(math.prod, shapes.values())), sum(map(math.prod, layers)))
