"""What a loaded model takes, and what the machine has: memory, shares of GPUs, and places in exclusive groups."""

import asyncio
import json
import logging
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import Sequence

from llava_api.cli import machine
from llava_api.cli.fleet.child import bound
from llava_api.cli.fleet.models_file import FleetModel, assign_gpus
from llava_api.cli.fleet.supervisor import Fleet, Member
from llava_api.cli.start_checks import GPU_SHARE, memory_needed
from llava_api.engine.cpu_plan import HEADROOM
from llava_api.errors import StartupError
from llava_api.settings import Settings

log = logging.getLogger(__name__)

MEMORY = "memory"


def weigh(models: Sequence[FleetModel]) -> tuple[list[Member], dict[str, float]]:
    """The members with what is known at once of their needs, and the machine's capacity. Raises StartupError."""
    capacity: dict[str, float] = {}
    if machine.torch_is_for_cuda():
        assign_gpus(models, gpus_of_this_machine())
    elif (found := machine.memory()) is not None:
        capacity[MEMORY] = found.available * HEADROOM
    members = []
    for model in models:
        needs = {f"gpu {gpu}": model.settings.gpu_memory_utilization or GPU_SHARE for gpu in model.gpus}
        if model.exclusive:
            needs[f"group {model.exclusive}"] = 1.0
        capacity |= dict.fromkeys(needs, 1.0)
        members.append(Member(model, needs))
    return members, capacity


def gpus_of_this_machine() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them. Raises StartupError."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        return visible.split(",") if visible else [str(number) for number in range(len(machine.nvidia_smi()))]
    except OSError as error:
        raise StartupError(f"the GPUs cannot be listed: {error}") from error


async def judge(fleet: Fleet) -> None:
    """Find out how much memory each model takes, in a process of its own: counting needs torch."""
    asked = [(one.model.model, one.model.settings.model_dump(mode="json")) for one in fleet.members]
    try:
        command = bound(__name__)
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, start_new_session=True)
        said, _ = await process.communicate(json.dumps([int(fleet.capacity[MEMORY]), asked]).encode())
        for member, line in zip(fleet.members, said.splitlines(), strict=False):
            found = json.loads(line)
            if isinstance(found, str):
                log.warning("%s cannot be loaded as it is: %s", member.model.name, found)
            else:
                member.needs[MEMORY] = found
    finally:
        fleet.judged = True
        fleet.changed.set()


def main() -> None:
    """The other process: prints a line for each model, its bytes or why it cannot be loaded."""
    free, asked = json.load(sys.stdin)
    for model, settings in asked:
        try:
            found: int | str = memory_needed(model, Settings(**settings), free)
        except StartupError as error:
            found = str(error)
        print(json.dumps(found), flush=True)
