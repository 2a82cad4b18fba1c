"""What a release is made of: pinned actions and bases, tested versions, an SBOM, a scan, signatures and the chart."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import setup_venv
from tests.unit.test_container_files import DOCKERFILE, ROOT, stages

WORKFLOWS = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / ".github" / "workflows").glob("*.yaml")}


def steps(job: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(WORKFLOWS["image.yaml"])["jobs"][job]["steps"]
    return found


def position(job: str, word: str) -> int:
    """Which step uses or runs ``word``."""
    (found,) = [at for at, step in enumerate(steps(job)) if word in step.get("uses", "") + step.get("run", "")]
    return found


@pytest.mark.parametrize("name", WORKFLOWS)
def test_actions_are_commits_not_tags(name: str) -> None:
    used = re.findall(r"(?m)^\s*- uses: (.*)$", WORKFLOWS[name]) + re.findall(r"(?m)^\s{8}uses: (.*)$", WORKFLOWS[name])
    assert used
    for one in used:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", one), one


def test_one_action_has_one_commit_everywhere() -> None:
    used = {one for text in WORKFLOWS.values() for one in re.findall(r"uses: (\S+)@(\S+)", text)}
    assert len({action for action, _ in used}) == len(used)


def test_both_targets_install_the_versions_that_are_tested() -> None:
    for device in ("cpu", "cuda"):
        build = "\n".join(stages()[f"{device}-dependencies"])
        assert f"setup_venv.py --device {device} --dependencies-only" in build
        assert "COPY constraints constraints" in build
        arguments = setup_venv.pip_arguments(setup_venv.chosen_extras(device, False, ["otel", "redis"]), False, ["x"])
        assert arguments[arguments.index("-c") + 1] == f"constraints/{device}.txt"
        assert (ROOT / "constraints" / f"{device}.txt").is_file()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_base_that_is_built_on_has_a_digest(device: str, tmp_path: Path) -> None:
    """The workflow's step, with a registry that knows one digest."""
    (step,) = [one for one in steps("build") if one.get("id") == "base"]
    digest = "sha256:" + "ab" * 32
    (tmp_path / "docker").write_text(f"#!/bin/sh\necho {digest}\n")
    (tmp_path / "docker").chmod(0o755)
    output = tmp_path / "output"
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "TARGET": device, "GITHUB_OUTPUT": str(output)}
    subprocess.run(["bash", "-e", "-c", step["run"]], cwd=ROOT, env=environment, check=True, timeout=10)
    (named,) = re.findall(rf"(?m)^ARG {device.upper()}_BASE=(.*)$", DOCKERFILE)
    expected = named if "@" in named else f"{named}@{digest}"
    assert output.read_text() == f"argument={device.upper()}_BASE={expected}\n"
    assert re.search(r"@sha256:[0-9a-f]{64}$", expected)


def test_the_layers_cache_is_written_where_it_is_read() -> None:
    (build,) = [step for step in steps("build") if step.get("id") == "push"]
    ref = build["with"]["cache-from"].removeprefix("type=registry,ref=")
    assert ref == "${{ env.IMAGE }}:buildcache-${{ matrix.target }}"
    assert "type=registry,ref={0}:buildcache-{1},mode=max" in build["with"]["cache-to"]
    assert "env.IMAGE, matrix.target" in build["with"]["cache-to"]
    # What a pull request builds never gets into a release.
    assert "github.event_name == 'push'" in build["with"]["cache-to"]


def test_an_image_is_signed_only_after_it_was_scanned() -> None:
    (build,) = [step for step in steps("build") if step.get("id") == "push"]
    assert "refs/tags/v" in build["with"]["sbom"]
    assert "mode=max" in build["with"]["provenance"]
    at = steps("build").index(build)
    assert at < position("build", "anchore/scan-action@") < position("build", "cosign sign")
    scan = steps("build")[position("build", "anchore/scan-action@")]["with"]
    assert scan["fail-build"] is True
    assert scan["image"].endswith("@${{ steps.push.outputs.digest }}")


def test_the_chart_is_published_with_the_version_of_its_images(tmp_path: Path) -> None:
    """The step's shell, with stand-ins for helm and cosign that write down what they are asked for."""
    job = yaml.safe_load(WORKFLOWS["image.yaml"])["jobs"]["chart"]
    assert job["needs"] == "build"
    version = yaml.safe_load((ROOT / "helm/llava-api/Chart.yaml").read_text())["appVersion"]
    digest = "sha256:" + "cd" * 32
    for program in ("helm", "cosign"):
        (tmp_path / program).write_text(
            f'#!/bin/sh\necho "$(basename $0) $*" >> {tmp_path}/asked\necho "Digest: {digest}"\n'
        )
        (tmp_path / program).chmod(0o755)
    run = steps("chart")[position("chart", "helm push")]["run"]
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "helm").symlink_to(ROOT / "helm")

    def publish(tag: str) -> int:
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "GITHUB_REF_NAME": tag, "CHARTS": "ghcr.io/me/charts"}
        command = ["bash", "-e", "-o", "pipefail", "-c", run]
        done = subprocess.run(command, cwd=tmp_path / "work", env=environment, capture_output=True, timeout=10)
        return done.returncode

    assert publish("v99.0.0") != 0
    assert not (tmp_path / "asked").exists()
    assert publish(f"v{version}") == 0
    assert (tmp_path / "asked").read_text().splitlines() == [
        f"helm package helm/llava-api --version {version}",
        f"helm push llava-api-{version}.tgz oci://ghcr.io/me/charts",
        f"cosign sign --yes ghcr.io/me/charts/llava-api@{digest}",
    ]


def test_artifact_hub_shows_the_images_that_the_chart_asks_for() -> None:
    chart = yaml.safe_load((ROOT / "helm/llava-api/Chart.yaml").read_text())
    values = yaml.safe_load((ROOT / "helm/llava-api/values.yaml").read_text())
    shown = [one["image"] for one in yaml.safe_load(chart["annotations"]["artifacthub.io/images"])]
    image = f"{values['image']['repository']}:{chart['appVersion']}"
    assert shown == [image, f"{image}-cpu"]


def test_apts_cache_is_kept_between_builds() -> None:
    """docker-clean would empty it, in every stage that has it mounted: it is removed in the first one."""
    for device in ("cpu", "cuda"):
        for stage, lines in stages().items():
            for line in lines:
                if stage == f"{device}-system" and "target=/var/cache/apt" in line:
                    assert line.index("rm -f /etc/apt/apt.conf.d/docker-clean") < line.index("apt-get")
        assert stages()[f"{device}-dependencies"][0] == f"FROM {device}-system"


def test_docker_sees_a_ready_server_within_seconds() -> None:
    for device in ("cpu", "cuda"):
        (check,) = [line for line in stages()[device] if line.startswith("HEALTHCHECK")]
        (seconds,) = re.findall(r"--interval=(\d+)s", check)
        assert int(seconds) <= 5
        # Debian 12's buildah, with which the image is tested, refuses it.
        assert "--start-interval" not in check
