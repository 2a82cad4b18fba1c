"""``llava-api doctor [MODEL]``: check this machine and what would be served, and say what to do.

Takes the flags of serve, so that it checks what serve would start. It starts no engine and loads no weights.
"""

import argparse
import json
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from llava_api.cli import machine
from llava_api.cli.doctor import machine_checks, network_checks, settings_checks, software_checks
from llava_api.cli.doctor.finding import Finding
from llava_api.cli.doctor.model_checks import model_findings
from llava_api.cli.flags import DEMO, MODEL_HELP, add_flags, given_flags
from llava_api.cli.start_checks import GPU_SHARE
from llava_api.cli.terminal import printable
from llava_api.settings import Settings

LABELS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("doctor", help="check this machine and say what to do", description=__doc__)
    parser.add_argument("model", nargs="?", default=DEMO, metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_flags(parser)
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    """Exits with code 1 if a check failed."""
    settings, found = settings_checks.read(chosen)
    found += examine(chosen.model, settings)
    effective = settings_checks.in_effect(settings, given_flags(chosen))
    failed = any(finding.state == "fail" for finding in found)
    if chosen.json:
        checks = [asdict(finding) for finding in found]
        print(json.dumps({"ok": not failed, "checks": checks, "settings": effective}, indent=2))
    else:
        print(printable(report(found, effective)))
    if failed:
        sys.exit(1)


def examine(model: str, settings: Settings) -> list[Finding]:
    on_gpu = machine.torch_is_for_cuda()
    with ThreadPoolExecutor(1) as pool:
        # The imports take seconds, in processes of their own, in parallel to the other checks.
        imports = pool.submit(software_checks.imports)
        checked = model_findings(model, settings, on_gpu)
        imported = imports.result()
    return [
        machine_checks.python_version(),
        *software_checks.packages(imported),
        software_checks.gpu(imported["torch"], settings.gpu_memory_utilization or GPU_SHARE),
        *software_checks.compiler(on_gpu),
        machine_checks.processors(on_gpu, machine.cores(), machine.cpu_features(), platform.machine()),
        machine_checks.memory(machine.memory()),
        machine_checks.shared_memory(settings, on_gpu),
        *machine_checks.disks(settings),
        machine_checks.open_files(),
        *checked,
        network_checks.port(settings),
        *network_checks.openings(settings),
        network_checks.exposure(settings),
    ]


def report(found: list[Finding], effective: list[dict[str, str]]) -> str:
    width = max(len(finding.check) for finding in found)
    lines = [
        f"{LABELS[finding.state]}  {finding.check:{width}}  {finding.found}"
        + (f"; to do: {finding.advice}" if finding.advice else "")
        for finding in found
    ]
    lines += ["", "settings that differ from their defaults:" if effective else "all settings have their defaults"]
    lines += [f"  {one['setting']} {one['value']} (from {one['source']})" for one in effective]
    failed = sum(finding.state == "fail" for finding in found)
    warned = sum(finding.state == "warn" for finding in found)
    lines += ["", f"{failed} failed, {warned} warnings, {len(found) - failed - warned} ok"]
    return "\n".join(lines)
