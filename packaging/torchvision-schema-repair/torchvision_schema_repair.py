"""Let ``import torchvision`` work where its compiled operators cannot load (CUDA build beside a CPU torch).

vLLM's LLaVA model imports ``torchvision.transforms.v2``, nothing compiled. torchvision's own import asks torch
for the schemas of two compiled operators before anything else, and dies where their library did not load. This
declares those two schemas, in every process, just before torchvision looks for them; calling the operators
still fails. The set-up installs it only where ``import torchvision`` fails.
"""

import sys
from importlib.machinery import ModuleSpec
from typing import Any

SCHEMAS = ("nms", "qnms")
kept: list[Any] = []
"""torch forgets a schema when its Library object is collected."""


class SchemaRepair:
    """A meta-path finder that finds nothing: it only acts when torchvision is about to need the schemas."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name == "torchvision._meta_registrations" and not kept:
            extension = sys.modules.get("torchvision.extension")
            if extension is not None and not extension._has_ops():
                import torch

                library = torch.library.Library("torchvision", "FRAGMENT")
                for operator in SCHEMAS:
                    library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
                kept.append(library)
        return None


def install() -> None:
    sys.meta_path.insert(0, SchemaRepair())
