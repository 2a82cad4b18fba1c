"""What vLLM loads in each of its processes (entry point ``vllm.general_plugins``): the names of our two models.

It must stay cheap: vLLM runs it before anything is known about the model. The classes are imported when one is used.
"""

from llava_api.engine.vllm_options import OWN_ARCHITECTURES

CLASSES = {
    "LlavaApiForConditionalGeneration": "llava_api.engine.vllm_models:Llava",
    "LlavaApiNextForConditionalGeneration": "llava_api.engine.vllm_models:LlavaNext",
}


def register() -> None:
    from vllm import ModelRegistry

    for name in OWN_ARCHITECTURES.values():
        ModelRegistry.register_model(name, CLASSES[name])
