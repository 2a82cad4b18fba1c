"""The families, one small table each. Source: ``llava/conversation.py`` (golden strings in tests/golden).

To add one: copy a table, change its texts, add it to ``FAMILIES``, and add its golden prompts as a test. To have it
found without ``--prompt-family``, name it in ``vision/families.py`` or ``detect.py``.
"""

from dataclasses import replace

from llava_api.prompts.family import PromptFamily

LANGUAGE_AND_VISION = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the "
    "user provides, and assist the user with a variety of tasks using natural language."
)

VICUNA_V1 = PromptFamily(
    name="vicuna_v1",
    default_system=(
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    ),
    system="{system} ",
    user="USER: {user} ASSISTANT:",
    assistant=" {assistant}</s>",
    header="ASSISTANT:",
    specials=("</s>",),
    stop_tokens=("</s>",),
)

LLAVA_V1 = replace(
    VICUNA_V1,
    name="llava_v1",
    default_system=(
        "A chat between a curious human and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the human's questions."
    ),
)

LLAVA_V0 = PromptFamily(
    name="llava_v0",
    default_system=LLAVA_V1.default_system,
    system="{system}",
    user="###Human: {user}###Assistant:",
    assistant=" {assistant}",
    header="###Assistant:",
    specials=(),
    stop_texts=("###",),
)

LLAVA_LLAMA_2 = PromptFamily(
    name="llava_llama_2",
    default_system=LANGUAGE_AND_VISION,
    system="<<SYS>>\n{system}\n<</SYS>>\n\n",
    user="[INST] {user} [/INST]",
    assistant=" {assistant} </s><s>",
    header="",
    specials=("</s>", "<s>"),
    stop_tokens=("</s>",),
    system_in_first_user=True,
)

MISTRAL_INSTRUCT = replace(
    LLAVA_LLAMA_2, name="mistral_instruct", default_system="", assistant=" {assistant} </s>", specials=("</s>",)
)

CHATML_DIRECT = PromptFamily(
    name="chatml_direct",
    default_system="Answer the questions.",
    system="<|im_start|>system\n{system}<|im_end|>",
    user="<|im_start|>user\n{user}<|im_end|><|im_start|>assistant\n",
    assistant="{assistant}<|im_end|>",
    header="<|im_start|>assistant\n",
    specials=("<|im_start|>", "<|im_end|>"),
    stop_tokens=("<|im_end|>",),
)

MPT = replace(
    CHATML_DIRECT,
    name="mpt",
    default_system=(
        "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers."
    ),
)

QWEN_1_5 = PromptFamily(
    name="qwen_1_5",
    default_system="You are a helpful assistant.",
    system="<|im_start|>system\n{system}<|im_end|>\n",
    user="<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n",
    assistant="{assistant}<|im_end|>\n",
    header="<|im_start|>assistant\n",
    specials=("<|im_start|>", "<|im_end|>"),
    stop_tokens=("<|im_end|>",),
)

QWEN_2 = replace(QWEN_1_5, name="qwen_2")

# The original writes <|begin_of_text|> into its template; here it is the tokenizer's BOS token, written once.
LLAVA_LLAMA_3 = PromptFamily(
    name="llava_llama_3",
    default_system=LANGUAGE_AND_VISION,
    system="<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>",
    user=(
        "<|start_header_id|>user<|end_header_id|>\n\n{user}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    assistant="{assistant}<|eot_id|>",
    header="<|start_header_id|>assistant<|end_header_id|>\n\n",
    specials=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    stop_tokens=("<|eot_id|>",),
)

FAMILIES: dict[str, PromptFamily] = {
    family.name: family
    for family in (
        VICUNA_V1,
        LLAVA_V1,
        LLAVA_V0,
        LLAVA_LLAMA_2,
        MISTRAL_INSTRUCT,
        CHATML_DIRECT,
        MPT,
        QWEN_1_5,
        QWEN_2,
        LLAVA_LLAMA_3,
    )
}
