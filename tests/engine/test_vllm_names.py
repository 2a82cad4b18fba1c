"""The installed vLLM still has every name, field and argument of its that the product uses.

Each failure names what vLLM has no longer, and the file of ours that uses it: run this first with another vLLM.
"""

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

import pytest

import llava_api
from llava_api.engine import start_errors
from llava_api.engine.base import ModelToLoad, Sampling
from llava_api.engine.cpu_plan import CpuPlan
from llava_api.engine.fork_server_preload import MODULES
from llava_api.engine.vllm_engine import leave_out_token_texts
from llava_api.engine.vllm_options import LORA_RANKS, PASSED_ON, engine_arguments, known_arguments
from llava_api.engine.vllm_plugin import (
    BUFFER_NEEDS,
    READER_NEEDS,
    keep_adapters_on_cpu,
    leave_empty_cache_unwritten,
    load_despite_stale_index,
)
from llava_api.setting_types import Dtype, Quantization
from llava_api.settings import Settings
from llava_api.versions import VLLM, installed
from llava_api.vision.families import LLAVA_1_6
from llava_api.vision.normalisation import CLIP

SOURCES = Path(llava_api.__path__[0])
ENGINE, MODELS, PLUGIN = "engine/vllm_engine.py", "engine/vllm_models.py", "engine/vllm_plugin.py"
PROJECTORS = "engine/vllm_projectors.py"
INT8, CT = "engine/vllm_int8.py", "vllm.model_executor.layers.quantization.compressed_tensors"
INT4, KERNELS = "engine/vllm_int4.py", "vllm.model_executor.kernels.linear"
INPUTS, PROCESSES = "vllm.multimodal.inputs", "vllm.distributed.device_communicators.shm_broadcast"
LLAVA = "vllm.model_executor.models.llava"
SAMPLING = [field.name for field in fields(Sampling) if field.name not in ("scored_tail", "grammar")]


@dataclass(frozen=True, slots=True)
class Used:
    ours: str
    """The file that uses it, below src/llava_api."""
    name: str
    has: str = ""
    """Attributes of the module, or of the class and its objects."""
    arguments: tuple[int, str] | None = None
    """A call of ours: the number of positional arguments, ``self`` included, and the names of the others."""


TABLE = [
    Used(ENGINE, "vllm.SamplingParams", arguments=(0, " ".join(SAMPLING))),
    Used(ENGINE, "vllm.SamplingParams", arguments=(0, "n max_tokens output_kind structured_outputs")),
    Used(ENGINE, "vllm.SamplingParams", arguments=(0, "prompt_logprobs skip_reading_prefix_cache detokenize")),
    Used(ENGINE, "vllm.sampling_params.StructuredOutputsParams", arguments=(0, "grammar")),
    Used(ENGINE, "vllm.sampling_params.RequestOutputKind", "DELTA"),
    Used(ENGINE, "vllm.engine.arg_utils.AsyncEngineArgs", "model"),
    Used(ENGINE, "vllm.usage.usage_lib.UsageContext", "OPENAI_API_SERVER"),
    Used(ENGINE, "vllm.inputs.EngineInput"),
    Used(ENGINE, "vllm.inputs.mm_input", arguments=(4, "cache_salt")),
    Used(ENGINE, "vllm.inputs.tokens_input", arguments=(1, "cache_salt")),
    Used(ENGINE, f"{INPUTS}.MultiModalBatchedField", arguments=(0, "keep_on_cpu")),
    Used(ENGINE, f"{INPUTS}.MultiModalFieldElem", arguments=(0, "data field")),
    Used(ENGINE, f"{INPUTS}.MultiModalKwargsItem", arguments=(1, "")),
    Used(ENGINE, f"{INPUTS}.MultiModalKwargsItems", arguments=(1, "")),
    Used(ENGINE, f"{INPUTS}.MultiModalSharedField", arguments=(0, "batch_size keep_on_cpu")),
    Used(ENGINE, f"{INPUTS}.PlaceholderRange", arguments=(0, "offset length")),
    Used(ENGINE, "vllm.outputs.RequestOutput", "outputs prompt_logprobs num_cached_tokens"),
    Used(ENGINE, "vllm.outputs.CompletionOutput", "text token_ids finish_reason index logprobs stop_reason"),
    Used(ENGINE, "vllm.logprobs.Logprob", "logprob rank"),
    Used(ENGINE, "vllm.lora.request.LoRARequest", "lora_name lora_int_id lora_path", arguments=(3, "")),
    Used(ENGINE, "vllm.v1.engine.exceptions.EngineDeadError"),
    Used(ENGINE, "vllm.v1.engine.logprobs", "LogprobsProcessor"),
    Used(ENGINE, "vllm.v1.engine.logprobs.convert_ids_list_to_tokens", arguments=(0, "tokenizer token_ids")),
    Used(ENGINE, "vllm.v1.engine.async_llm.AsyncLLM", "model_config vllm_config engine_core output_processor"),
    Used(ENGINE, "vllm.v1.engine.async_llm.AsyncLLM.from_engine_args", arguments=(1, "usage_context")),
    Used(ENGINE, "vllm.v1.engine.async_llm.AsyncLLM.generate", arguments=(4, "lora_request")),
    Used(ENGINE, "vllm.v1.engine.async_llm.AsyncLLM.add_lora", arguments=(2, "")),
    Used(ENGINE, "vllm.v1.engine.async_llm.AsyncLLM.remove_lora", arguments=(2, "")),
    Used(ENGINE, "vllm.v1.engine.async_llm.AsyncLLM.check_health", arguments=(1, "")),
    Used(ENGINE, "vllm.v1.engine.async_llm.AsyncLLM.shutdown", arguments=(1, "")),
    Used(ENGINE, "vllm.v1.engine.core_client.MPClient", "resources"),
    Used(ENGINE, "vllm.v1.engine.core_client.BackgroundResources", "engine_manager"),
    Used(ENGINE, "vllm.v1.engine.utils.CoreEngineProcManager", "processes"),
    Used(ENGINE, "vllm.config.ModelConfig", "max_model_len"),
    Used(ENGINE, "vllm.config.VllmConfig", "scheduler_config parallel_config"),
    Used(ENGINE, "vllm.config.SchedulerConfig", "max_num_seqs"),
    Used(ENGINE, "vllm.config.ParallelConfig", "data_parallel_size"),
    Used(MODELS, "vllm.config.VllmConfig", "model_config"),
    Used(MODELS, "vllm.config.ModelConfig", "hf_config"),
    Used(MODELS, f"{LLAVA}.LlavaForConditionalGeneration", "config multi_modal_projector load_weights"),
    Used(MODELS, f"{LLAVA}.LlavaForConditionalGeneration", arguments=(0, "vllm_config prefix")),
    Used(MODELS, f"{LLAVA}.LlavaForConditionalGeneration._image_pixels_to_features", arguments=(3, "")),
    Used(MODELS, f"{LLAVA}.LlavaMultiModalProjector", "act"),
    Used(MODELS, "vllm.lora.lora_model.LoRAModel._should_skip_module", arguments=(2, "")),
    Used(MODELS, "vllm.lora.model_manager.LoRAModelManager.get_adapter", arguments=(2, "")),
    Used(PROJECTORS, "vllm.lora.peft_helper.PEFTHelper", "modules_to_save"),
    Used(PROJECTORS, "vllm.lora.peft_helper.PEFTHelper._validate_features", arguments=(1, "")),
    Used(PROJECTORS, "vllm.lora.peft_helper", "PEFTHelper"),
    Used(PROJECTORS, "vllm.lora.worker_manager.WorkerLoRAManager", "_adapter_manager"),
    Used(PROJECTORS, "vllm.lora.worker_manager.WorkerLoRAManager._load_adapter", arguments=(2, "")),
    Used(MODELS, f"{LLAVA}_next.LlavaNextForConditionalGeneration", "config multi_modal_projector load_weights"),
    Used(MODELS, f"{LLAVA}_next.LlavaNextForConditionalGeneration", arguments=(0, "vllm_config prefix")),
    Used(MODELS, f"{LLAVA}_next.LlavaNextForConditionalGeneration._image_pixels_to_features", arguments=(3, "")),
    Used(
        MODELS,
        f"{LLAVA}_next.LlavaNextForConditionalGeneration._merge_image_patch_embeddings",
        arguments=(3, "strategy"),
    ),
    Used(INT4, KERNELS, "_POSSIBLE_KERNELS"),
    Used(INT4, f"{KERNELS}.MPLinearKernel", "config w_q_name w_s_name w_zp_name"),
    Used(INT4, f"{KERNELS}.MPLinearKernel._get_weight_params", arguments=(2, "")),
    Used(INT4, f"{KERNELS}.MPLinearKernel._transform_param", arguments=(4, "")),
    Used(INT4, f"{KERNELS}.MPLinearLayerConfig", "partition_weight_shape weight_type act_type group_size zero_points"),
    Used(INT4, f"{KERNELS}.choose_mp_linear_kernel"),
    Used(INT4, f"{KERNELS}.mixed_precision.cpu.CPUWNA16LinearKernel", "_process_gptq_weights_w4a8"),
    Used(INT4, "vllm._custom_ops", "CPUQuantAlgo"),
    Used(INT8, KERNELS, "_POSSIBLE_INT8_KERNELS"),
    Used(INT8, f"{KERNELS}.init_int8_linear_kernel"),
    Used(
        INT8,
        f"{KERNELS}.scaled_mm.cpu.CPUInt8ScaledMMLinearKernel",
        "_apply_weights_sgl process_weights_for_sgl linear_method",
    ),
    Used(INT8, f"{KERNELS}.scaled_mm.ScaledMMLinearKernel.Int8ScaledMMLinearLayerConfig", "input_symmetric"),
    Used(INT8, f"{CT}.schemes.CompressedTensorsW8A8Int8", "kernel create_weights"),
    Used(INT8, "vllm.distributed.get_tensor_model_parallel_world_size", arguments=(0, "")),
    Used(INT8, "vllm.platforms.PlatformEnum", "CPU"),
    Used(INT4, "vllm._custom_ops.convert_weight_packed_scale_zp", arguments=(4, "")),
    Used(INT4, "vllm.platforms.PlatformEnum", "CPU"),
    Used(INT4, "vllm.scalar_type.scalar_types", "uint4 uint4b8"),
    Used(INT4, "vllm.utils.torch_utils.direct_register_custom_op", arguments=(2, "fake_impl")),
    Used(PLUGIN, "vllm.ModelRegistry", "register_model"),
    Used(PLUGIN, "vllm.platforms.current_platform", "is_cpu"),
    Used(PLUGIN, PROCESSES, "SpinCondition ShmRingBuffer"),
    Used(PLUGIN, f"{PROCESSES}.SpinCondition", " ".join(READER_NEEDS)),
    Used(PLUGIN, f"{PROCESSES}.SpinCondition.wait", arguments=(1, "timeout_ms")),
    Used(PLUGIN, f"{PROCESSES}.ShmRingBuffer", " ".join(BUFFER_NEEDS)),
    Used(PLUGIN, f"{PROCESSES}.ShmRingBuffer", arguments=(4, "")),
    Used(PLUGIN, "vllm.v1.engine.coordinator", "DPCoordinatorProc"),
    Used(PLUGIN, "vllm.v1.engine.coordinator.DPCoordinatorProc", "run_coordinator"),
    Used(PLUGIN, "vllm.model_executor.model_loader.default_loader", "DefaultModelLoader"),
    Used(
        PLUGIN,
        "vllm.model_executor.model_loader.default_loader.filter_duplicate_safetensors_files",
        arguments=(3, ""),
    ),
    Used(PLUGIN, "vllm.v1.worker.gpu_model_runner", "GPUModelRunner allocate_kv_cache"),
    Used(PLUGIN, "vllm.lora.layers.base_linear", "BaseLinearLayerWithLoRA _get_lora_device"),
    Used("engine/fork_server.py", "vllm.v1.engine.utils", "get_mp_context"),
    Used("engine/fork_server.py", "vllm.v1.executor.multiproc_executor", "get_mp_context"),
    *(Used("engine/fork_server_preload.py", module) for module in MODULES if module.startswith("vllm")),
]
TEXTS = [
    # The module of vLLM's, our file, and what is in the module's text.
    ("vllm.v1.engine.core", "engine/start_errors.py", f'logger.exception("EngineCore {start_errors.FAILED}.")'),
    ("vllm.v1.executor.multiproc_executor", "engine/start_errors.py", f"WorkerProc {start_errors.FAILED}."),
    *(("vllm.v1.executor.multiproc_executor", "engine/start_errors.py", text) for text in start_errors.SECOND_HAND),
    *(("vllm.v1.engine.utils", "engine/start_errors.py", text) for text in ("initialization failed", "root cause")),
    ("vllm.lora.peft_helper", "engine/vllm_projectors.py", "self._validate_features()"),
    ("vllm.lora.worker_manager", "engine/vllm_projectors.py", "self._load_adapter("),
    ("vllm.lora.worker_manager", MODELS, 'getattr(model, "lora_skip_prefixes", None)'),
    ("vllm.lora.model_manager", MODELS, "self.model.lora_manager = self"),
    ("vllm.plugins", "pyproject.toml", "vllm.general_plugins"),
    (LLAVA, MODELS, "config.projector_hidden_act"),
    (f"{LLAVA}_next", MODELS, "self._merge_image_patch_embeddings("),
]


def sentence(ours: str, lacks: str) -> str:
    return f"vLLM {installed(*VLLM)} has no {lacks}, which src/llava_api/{ours} uses"


def find(name: str) -> Any:
    """The module, or what is in it. Raises LookupError with the part of the name that is not there."""
    module, names = name, list[str]()
    while True:
        try:
            found = importlib.import_module(module)
            break
        except ModuleNotFoundError as error:
            if not module.startswith(error.name or "."):
                raise
            module, _, last = module.rpartition(".")
            names.insert(0, last)
    for index, part in enumerate(names):
        if not hasattr(found, part):
            raise LookupError(".".join([module, *names[: index + 1]]))
        found = getattr(found, part)
    return found


def names_of(found: Any) -> set[str]:
    """Attributes of a module, or of a class's objects: what its methods assign, too."""
    names = set(dir(found))
    for one in found.__mro__ if isinstance(found, type) else ():
        names |= set(vars(one).get("__annotations__", {}))
        if one.__module__.startswith("vllm"):
            names |= {node.attr for node in ast.walk(tree_of(one)) if is_assigned_to_self(node)}
    return names


def tree_of(one: type) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(one)))


def is_assigned_to_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"


def missing(used: Used) -> list[str]:
    try:
        found = find(used.name)
    except LookupError as error:
        return [sentence(used.ours, str(error.args[0]))]
    lacking = [f"{used.name}.{name}" for name in sorted(set(used.has.split()) - names_of(found))]
    if used.arguments is not None:
        positional, named = used.arguments
        try:
            inspect.signature(found).bind(*range(positional), **dict.fromkeys(named.split()))
        except TypeError as error:
            lacking.append(f"{used.name} that can be called as we do ({error})")
    return [sentence(used.ours, one) for one in lacking]


@pytest.mark.parametrize("used", TABLE, ids=lambda used: f"{used.ours}-{used.name}")
def test_vllm_still_has(used: Used) -> None:
    assert not missing(used), "; ".join(missing(used))


@pytest.mark.parametrize(("module", "ours", "text"), TEXTS)
def test_vllm_still_says(module: str, ours: str, text: str) -> None:
    source = re.sub(r'"\s*\n\s*"', "", inspect.getsource(find(module)))
    assert text in source, sentence(ours, f'"{text}" in {module}')


def imported() -> Iterator[tuple[str, str]]:
    """(our file, name of vLLM's) of every import in the product."""
    for path in sorted(SOURCES.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
                yield from ((str(path.relative_to(SOURCES)), f"{node.module}.{one.name}") for one in node.names)


def test_the_table_has_every_import() -> None:
    known = {(used.ours, used.name) for used in TABLE}
    assert len(set(imported())) > 20
    assert set(imported()) - known == set()


@pytest.mark.parametrize(
    ("patch", "module", "name"),
    [
        (leave_out_token_texts, "vllm.v1.engine.logprobs", "convert_ids_list_to_tokens"),
        (keep_adapters_on_cpu, "vllm.lora.layers.base_linear", "_get_lora_device"),
        (leave_empty_cache_unwritten, "vllm.v1.worker.gpu_model_runner", "allocate_kv_cache"),
        (
            load_despite_stale_index,
            "vllm.model_executor.model_loader.default_loader",
            "filter_duplicate_safetensors_files",
        ),
    ],
)
def test_a_function_is_replaced_only_if_vllm_calls_it(
    patch: Callable[[], bool], module: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = find(module)
    monkeypatch.setattr(found, name, getattr(found, name))
    assert patch(), sentence(PLUGIN, f"{module}.{name} that its methods call")
    assert getattr(found, name).__module__.startswith("llava_api")
    monkeypatch.delattr(found, name)
    assert not patch()
    assert not hasattr(found, name)


def test_every_engine_argument_is_known() -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    plan = CpuPlan("bfloat16", 1, 4096, 2**30, 2**31, 16, 2048, True, 2, 300, ("", "", ""))
    model = ModelToLoad(
        "m", LLAVA_1_6, CLIP, pinpoints=((336, 672),), merge="spatial", quantization="fp8", cpu_plan=plan,
        max_loras=1, max_lora_rank=8, name="m",
    )  # fmt: skip
    settings = Settings().model_copy(update=dict.fromkeys(PASSED_ON, 1))
    known = known_arguments(AsyncEngineArgs)
    assert set(PASSED_ON) < set(engine_arguments(settings, model, on_cpu=True, known=known)) <= known


def test_every_variable_is_known() -> None:
    from vllm.envs import environment_variables

    names = {name for path in SOURCES.rglob("*.py") for name in re.findall(r'"(VLLM_[A-Z_]+)"', path.read_text())}
    assert len(names) > 5
    assert names - set(environment_variables) == set(), sentence("engine/vllm_options.py", "such variables")


def test_every_value_is_allowed() -> None:
    methods, types = "vllm.model_executor.layers.quantization.QuantizationMethods", "vllm.config.model.ModelDType"
    assert set(get_args(Quantization)) <= set(get_args(find(methods))), sentence("setting_types.py", f"such {methods}")
    assert set(get_args(get_args(Dtype)[0])) == set(get_args(find(types))), sentence(
        "setting_types.py", f"such {types}"
    )
    ranks, backends = "vllm.config.lora.MaxLoRARanks", "vllm.config.structured_outputs.StructuredOutputsBackend"
    assert set(LORA_RANKS) <= set(get_args(find(ranks))), sentence("engine/vllm_options.py", f"such {ranks}")
    assert "guidance" in get_args(find(backends)), sentence("engine/vllm_options.py", f"guidance in {backends}")


@pytest.mark.parametrize(
    ("used", "words"),
    [
        (Used(ENGINE, "vllm.lora.request.Moved"), "vllm.lora.request.Moved"),
        (Used(ENGINE, "vllm.lora.moved.LoRARequest"), "vllm.lora.moved"),
        (Used(ENGINE, "vllm.logprobs.Logprob", "logprob moved rank"), "vllm.logprobs.Logprob.moved"),
        (Used(ENGINE, "vllm.inputs.tokens_input", arguments=(1, "moved")), "tokens_input .* argument 'moved'"),
        (Used(ENGINE, "vllm.inputs.tokens_input", arguments=(9, "")), "tokens_input .*too many positional arguments"),
        (Used(ENGINE, "vllm.inputs.tokens_input", arguments=(0, "")), "tokens_input .*missing a required argument"),
    ],
)
def test_what_is_missing_is_named_beside_our_file(used: Used, words: str) -> None:
    [said] = missing(used)
    assert re.search(rf"vLLM \d\S+ has no \S*{words}.*, which src/llava_api/engine/vllm_engine.py uses", said)
