"""What vLLM loads in each of its processes (entry point ``vllm.general_plugins``).

Our two models, how it waits for its queue, with whom it ends, and how it tells why it does not start.

It must stay cheap: vLLM runs it before anything is known about the model. The classes are imported when one is used.
"""

from llava_api.engine.processes import die_with_parent
from llava_api.engine.vllm_cause import record_start_errors
from llava_api.engine.vllm_options import OWN_ARCHITECTURES
from llava_api.engine.vllm_queues import fit_queues_into_shared_memory
from llava_api.engine.vllm_waits import nap_between_messages

CLASSES = {
    "LlavaApiForConditionalGeneration": "llava_api.engine.vllm_models:Llava",
    "LlavaApiNextForConditionalGeneration": "llava_api.engine.vllm_models:LlavaNext",
}


def register() -> None:
    die_with_parent()
    from vllm import ModelRegistry
    from vllm.platforms import current_platform

    record_start_errors()
    fit_queues_into_shared_memory()
    if current_platform.is_cpu():
        nap_between_messages()

    for name in OWN_ARCHITECTURES.values():
        ModelRegistry.register_model(name, CLASSES[name])
