"""The two GGUF files of a LLaVA, as llama.cpp's users hold them: a text model and its vision half (``mmproj``).

Their metadata -> the small files of a folder in the hub's format; ``gguf_tensors`` reads the weights. Source: in
llama.cpp ``conversion/llama.py``, ``tools/mtmd/clip.cpp`` and ``convert_image_encoder_to_gguf.py``.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_api.checkpoints import tokenizer_files
from llava_api.checkpoints.files import LFS_POINTER, WEIGHT_FILES, lfs_pointer
from llava_api.checkpoints.hub_files import hub_config
from llava_api.checkpoints.original import TEXT_ARCHITECTURES, processor_files, rows_needed
from llava_api.errors import StartupError
from llava_api.vision.families import LLAVA_1_5, LLAVA_1_6

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

MAGIC = b"GGUF"
MOST_PIECES = 300_000
LONGEST_PIECE = 2000
"""In letters: transformers tries all ways to cut a piece in two. Published ones have up to 256."""
UNUSED = 5
"""In ``token_type``."""
NEWLINES = ("model.image_newline", "v.image_newline")
GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
"""The grids of all published LLaVA-1.6 checkpoints, in tiles."""
PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class GgufPair:
    text: Path
    vision: Path
    bits: float
    """Bits of a weight of the text model, on average."""
    assumed: str
    """What the files do not say, and the reason for what is assumed."""
    small_files: dict[str, Any] = field(repr=False)
    """The small files of the same checkpoint in the hub's format: name -> content."""

    def __str__(self) -> str:
        return f"{self.text.name} ({self.bits:.2g} bits a weight) and {self.vision.name}"


def find_text(model: str) -> Path | None:
    """The file of the text model if ``model`` is a file, or a folder with no weights but one; None otherwise.

    Raises StartupError if a folder holds several.
    """
    try:
        path = Path(model).expanduser()
        if path.is_file():
            return path
        inside = sorted(path.glob("*.gguf"))
        if not inside or any(file for pattern in WEIGHT_FILES for file in path.glob(pattern)):
            return None
    except (OSError, ValueError, RuntimeError):
        # ``locate`` reports names that are no paths.
        return None
    return only([file for file in inside if not is_vision(file)], f"GGUF text model in {path}", "its path")


def find_vision(text: Path, mmproj: str | None) -> Path:
    """The file of the vision half: ``mmproj``, or the one beside ``text`` that has this word in its name."""
    if mmproj is None:
        return only(sorted(filter(is_vision, text.parent.glob("*.gguf"))), f"*mmproj*.gguf beside {text}", "--mmproj")
    if not Path(mmproj).expanduser().is_file():
        raise StartupError(f"--mmproj: there is no file {mmproj}")
    return Path(mmproj).expanduser()


def is_vision(file: Path) -> bool:
    return "mmproj" in file.name.lower()


def only(files: list[Path], what: str, advice: str) -> Path:
    if len(files) == 1:
        return files[0]
    found = f"are several: {', '.join(file.name for file in files[:5])}" if files else "is none"
    raise StartupError(f"there must be one {what}, and there {found}; name it with {advice}")


def read_gguf(file: Path) -> "GGUFReader":
    """Maps the file and reads its metadata. Raises StartupError if it is cut short or not a GGUF file."""
    # Imports gguf, which takes a second.
    from llava_api.checkpoints.gguf_reader import Reader

    try:
        with file.open("rb") as opened:
            start = opened.read(len(LFS_POINTER))
        if start == LFS_POINTER:
            raise lfs_pointer(file.name)
        if start[: len(MAGIC)] != MAGIC:
            raise StartupError(f"{file.name} is not a GGUF file: give a checkpoint folder, a hub id or a *.gguf")
        # Copy on write, because torch warns of arrays that are read-only.
        return Reader(file, "c")
    except OSError as error:
        raise StartupError(f"{file.name} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, RecursionError) as error:
        raise StartupError(
            f"{file.name} is damaged, only half downloaded, or of a GGUF version before 2: download it again"
        ) from error


class Metadata:
    """The metadata of one file, under the keys of its architecture."""

    def __init__(self, file: Path, prefix: str | None = None) -> None:
        self.file = file
        self.reader = read_gguf(file)
        self.architecture = str(self.get("general.architecture", ""))
        self.prefix = prefix or self.architecture
        self.tensors: dict[str, ReaderTensor] = {tensor.name: tensor for tensor in self.reader.tensors}
        empty = next((tensor for tensor in self.tensors.values() if not tensor.n_elements), None)
        if empty is not None:
            raise StartupError(f"{file.name} is damaged: its tensor {empty.name} has no numbers; download it again")

    def get(self, key: str, default: Any = None) -> Any:
        found = self.reader.get_field(key)
        return default if found is None else rounded(found.contents())

    def own(self, key: str, default: Any = None) -> Any:
        """A key of the architecture. Raises StartupError if it is missing and there is no default."""
        value = self.get(f"{self.prefix}.{key}", default)
        if value is None:
            raise StartupError(f"{self.file.name} has no {self.prefix}.{key} in its metadata")
        return value

    def above_zero(self, key: str, default: Any = None, kind: type[int | float] = int) -> Any:
        """A key of the architecture with a number of this kind. Raises StartupError for another value."""
        value = self.own(key, default)
        if type(value) is not kind or not 0 < value < math.inf:
            raise self.impossible(key, value)
        return value

    def impossible(self, key: str, value: object) -> StartupError:
        return StartupError(f"{self.file.name} is damaged: its {self.prefix}.{key} is {value}; download it again")


def rounded(value: Any) -> Any:
    """float32 numbers as they were written: 1e-05, not 9.999999747378752e-06."""
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def read_pair(text_file: Path, mmproj: str | None) -> GgufPair:
    """Raises StartupError if the files are no LLaVA."""
    text = Metadata(text_file)
    if text.architecture == "clip":
        raise StartupError(f"{text_file.name} is the vision half (mmproj): name the text model's file")
    if text.architecture not in ("llama", "qwen2"):
        raise StartupError(
            f"{text_file.name} is a {text.architecture or 'nameless'} model; llava-api reads llama, qwen2"
        )
    if text.get("split.count", 1) > 1:
        raise StartupError(f"{text_file.name} is one of several parts: join them with llama-gguf-split --merge")
    vision_file = find_vision(text_file, mmproj)
    vision = Metadata(vision_file, "clip.vision")
    if vision.architecture != "clip":
        raise StartupError(f"{vision_file.name} is no vision half (mmproj): name one with --mmproj")
    projector = vision.get("clip.projector_type", vision.own("projector_type", "mlp"))
    if projector != "mlp" or "mm.2.bias" not in vision.tensors:
        raise StartupError(f"{vision_file.name} has a projector of type {projector}; llava-api knows LLaVA's mlp")
    made, wanted = int(vision.tensors["mm.2.bias"].n_elements), text.own("embedding_length")
    if made != wanted:
        raise StartupError(
            f"{vision_file.name} belongs to another text model: its projector makes vectors of {made:,} numbers, and "
            f"{text_file.name} takes {wanted:,}"
        )
    kind, reason = text_kind(text)
    settings = tokenizer_settings(text, kind)
    tokenizer, image_token_id = tokenizer_files.with_image_token(
        tokenizer_of(text, settings.get("bos_token") if settings["add_bos_token"] else None)
    )
    config = config_of(text, vision, kind, image_token_id)
    family = LLAVA_1_6 if LLAVA_1_6.architecture in config["architectures"] else LLAVA_1_5
    has = "has" if family.tiled else "has no"
    return GgufPair(
        text_file,
        vision_file,
        bits_of(text),
        f"{family}, because its mmproj {has} image_newline or grids; text model {kind}, {reason} (--prompt-family and "
        "--image-mode choose otherwise)",
        {
            "config.json": config,
            "tokenizer.json": tokenizer,
            "tokenizer_config.json": settings,
            "generation_config.json": {"eos_token_id": config["text_config"]["eos_token_id"]},
            **processor_files(config),
        },
    )


def text_kind(text: Metadata) -> tuple[str, str]:
    """(model type, reason). llama.cpp calls Mistral's models llama too."""
    heads = text.above_zero("attention.head_count")
    shares_keys = text.above_zero("attention.head_count_kv", heads) < heads
    pieces = text.get("tokenizer.ggml.model") == "llama" and "<|im_start|>" not in text.get("tokenizer.ggml.tokens")
    if text.architecture == "llama" and shares_keys and pieces:
        return "mistral", "because its attention heads share keys, which Vicuna's do not"
    return text.architecture, "as its architecture says"


def tokenizer_of(text: Metadata, bos: str | None) -> tokenizer_files.Tokenizer:
    """A tokenizer.json, by transformers' own conversion. ``bos``: what it writes before every text."""
    pieces = text.get("tokenizer.ggml.tokens", [])
    if len(pieces) > MOST_PIECES or max(map(len, pieces), default=0) > LONGEST_PIECE:
        raise StartupError(
            f"{text.file.name} has more than {MOST_PIECES:,} tokens, or one of more than {LONGEST_PIECE:,} letters"
        )
    if len(set(pieces)) < len(pieces):
        raise StartupError(f"{text.file.name} is damaged: some of its tokens are the same; download it again")
    try:
        from tokenizers.processors import TemplateProcessing
        from transformers import AutoTokenizer

        backend = AutoTokenizer.from_pretrained(text.file.parent, gguf_file=text.file.name).backend_tokenizer
        if bos is not None:
            ids = [(bos, backend.token_to_id(bos))]
            backend.post_processor = TemplateProcessing(f"{bos} $A", f"{bos} $A {bos}:1 $B:1", ids)
        made: tokenizer_files.Tokenizer = json.loads(backend.to_str())
        kinds = text.get("tokenizer.ggml.token_type")
        # Rows that only pad the embedding have names too, and transformers adds a token that its class is used to.
        pieces = {piece: index for piece, index in made["model"]["vocab"].items() if kinds[index] != UNUSED}
    except Exception as error:  # transformers reads the whole metadata, and checks it in ways of its own.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise StartupError(f"the tokenizer or sizes in {text.file.name} cannot be read ({reason})") from error
    made["model"]["vocab"] = pieces
    made["added_tokens"] = [token for token in made["added_tokens"] if token["content"] in pieces]
    # As in Llama 3's own file.
    made["model"]["ignore_merges"] = text.get("tokenizer.ggml.pre") == "llama-bpe"
    return made


def tokenizer_settings(text: Metadata, kind: str) -> dict[str, Any]:
    """tokenizer_config.json."""
    tokens = text.get("tokenizer.ggml.tokens", [])
    pieces = text.get("tokenizer.ggml.model") == "llama"
    ids = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    named = {name: text.get(f"tokenizer.ggml.{key}_token_id") for name, key in ids.items()}
    settings = {
        "tokenizer_class": "LlamaTokenizer" if pieces else "PreTrainedTokenizerFast",
        **{f"{name}_token": tokens[index] for name, index in named.items() if index is not None},
        "add_bos_token": text.get("tokenizer.ggml.add_bos_token", pieces or "<|begin_of_text|>" in tokens),
        "clean_up_tokenization_spaces": False,
        "image_token": "<image>",
        "chat_template": text.get("tokenizer.chat_template"),
    }
    # Vicuna's and Mistral's own tokenizers differ in this, and GGUF does not say it.
    return settings | ({"legacy": kind == "mistral"} if pieces else {})


def config_of(text: Metadata, vision: Metadata, kind: str, image_token_id: int) -> dict[str, Any]:
    """config.json."""
    layers = len({name.split(".")[2] for name in vision.tensors if name.startswith("v.blk.")})
    tile, flat = vision.own("image_size"), vision.own("image_grid_pinpoints", [])
    pinpoints = [list(point) for point in zip(flat[::2], flat[1::2], strict=True)]
    config = hub_config(
        LLAVA_1_6 if flat or any(name in vision.tensors for name in NEWLINES) else LLAVA_1_5,
        text=text_config(text, kind, image_token_id),
        vision=vision_config(vision, layers),
        image_token_id=image_token_id,
        pinpoints=pinpoints or [[across * tile, down * tile] for across, down in GRIDS],
    )
    # The files leave out the layers after the one whose output is used: of ViT-L's 24, they hold 23.
    used = vision.own("feature_layer", [layers - 1 if layers == 24 else layers])
    if len(used) != 1 or not 0 < used[0] <= layers:
        raise StartupError(f"{vision.file.name} uses vision layers {used} of {layers}; llava-api knows LLaVA's one")
    said = {name: vision.own(name, "") for name in ("image_aspect_ratio", "mm_patch_merge_type")}
    return {
        **config,
        **{name: value for name, value in said.items() if value},
        "vision_feature_layer": used[0] - layers - 1,
        "tie_word_embeddings": "output.weight" not in text.tensors,
        "torch_dtype": dtype_of(text),
    }


def text_config(text: Metadata, kind: str, image_token_id: int) -> dict[str, Any]:
    heads = text.above_zero("attention.head_count")
    rows = int(text.tensors["token_embd.weight"].shape[1]) if "token_embd.weight" in text.tensors else 0
    shared = text.above_zero("attention.head_count_kv", heads)
    if heads % shared:
        raise StartupError(f"{text.file.name} has {heads} attention heads, which cannot share {shared} of keys")
    if text.own("rope.scaling.type", "none") != "none":
        raise StartupError(f"{text.file.name} scales its RoPE, which no LLaVA does")
    config = {
        "model_type": kind,
        "architectures": [TEXT_ARCHITECTURES[kind]],
        "vocab_size": rows_needed(rows, image_token_id),
        "hidden_size": text.above_zero("embedding_length"),
        "intermediate_size": text.above_zero("feed_forward_length"),
        "num_hidden_layers": text.above_zero("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "hidden_act": "silu",
        "max_position_embeddings": text.above_zero("context_length"),
        "rms_norm_eps": text.above_zero("attention.layer_norm_rms_epsilon", kind=float),
        "rope_theta": text.above_zero("rope.freq_base", 10000.0, float),
        "bos_token_id": text.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": text.get("tokenizer.ggml.eos_token_id", 2),
    }
    if kind == "mistral":
        config["sliding_window"] = None
    return config


def vision_config(vision: Metadata, layers: int) -> dict[str, Any]:
    heads, width = vision.above_zero("attention.head_count"), vision.above_zero("embedding_length")
    if width % heads:
        raise vision.impossible("attention.head_count", heads)
    gelu = "gelu" if vision.get("clip.use_gelu", False) else "quick_gelu"
    return {
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": vision.above_zero("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_channels": 3,
        "image_size": vision.above_zero("image_size"),
        "patch_size": vision.above_zero("patch_size"),
        "projection_dim": vision.above_zero("projection_dim"),
        "hidden_act": gelu,
        "layer_norm_eps": vision.above_zero("attention.layer_norm_epsilon", kind=float),
    }


def matrices(text: Metadata) -> Iterator["ReaderTensor"]:
    return (tensor for name, tensor in text.tensors.items() if name.startswith("blk.") and len(tensor.shape) > 1)


def bits_of(text: Metadata) -> float:
    numbers = sum(int(tensor.n_elements) for tensor in matrices(text))
    return 8 * sum(int(tensor.n_bytes) for tensor in matrices(text)) / max(numbers, 1)


def dtype_of(text: Metadata) -> str:
    """The type in which the tensors are written: the stored one, or float16 for what is dequantized."""
    types = {tensor.tensor_type.name for tensor in matrices(text)}
    return PLAIN.get(types.pop(), "float16") if len(types) == 1 else "float16"
