"""Build the CPU image without a container engine or a registry, and try it: ``make image-test`` (as root).

Needs Debian's buildah, podman and debootstrap, 15 GB of disk and ten minutes. debootstrap makes the base unless
``--base`` names one; buildah builds the image with chroot isolation. Then its files are checked, and it runs twice: by
``buildah run``, and with a read-only root file system, without capabilities, and with Docker's 64 MB of /dev/shm.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tools.image_server import Failed, check, free_port, running_image, say
from tools.pip_shelf import CERTIFICATES, PASSED_ON, pip_conf, pip_settings

ROOT = Path(__file__).resolve().parent.parent
BASE, IMAGE = "localhost/llava-base:bookworm", "localhost/llava-api:cpu"
LABEL = "org.opencontainers.image."
TOOLS = ("gcc", "cc", "c++", "g++", "clang", "make", "ld", "as", "cmake", "ninja", "git", "curl", "wget", "pip", "pip3")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""As in the base images of the registries."""
TRACES = (
    "etc/pip.conf",
    "root/.cache",
    "root/.config",
    "root/.pip",
    "src",
    "tmp/*",
    "var/lib/apt/lists/*",
    "opt/llava-api/install.log",
    "opt/llava-api/lib/python3*/site-packages/pip",
)
"""What a build can leave behind and must not."""
READ_ONLY = """
set -e
root=$1; shift
mount --bind "$root" "$root"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o size=64m,mode=1777,noexec,nosuid,nodev shm "$root/dev/shm"
mount --rbind /sys "$root/sys"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=1777,noexec,nosuid,nodev tmp "$root/tmp"
mount -t tmpfs -o uid=10001,gid=10001,mode=755 data "$root/data"
mount -o remount,bind,ro "$root"
exec chroot "$root" setpriv --reuid 10001 --regid 10001 --clear-groups --inh-caps=-all --bounding-set=-all \
  --no-new-privs "$@"
"""


class Store:
    """Images and containers in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.options = [f"--root={folder}/storage", f"--runroot={folder}/run", "--storage-driver=vfs"]
        # buildah puts its cache mounts there too.
        self.environment = {**os.environ, "TMPDIR": str(folder / "tmp")}
        (folder / "tmp").mkdir(parents=True, exist_ok=True)

    def command(self, program: str, *arguments: str) -> list[str]:
        return [program, *self.options, *arguments]

    def buildah(self, *arguments: str) -> str:
        done = subprocess.run(self.command("buildah", *arguments), stdout=subprocess.PIPE, env=self.environment)
        check(done.returncode == 0, f"buildah {arguments[0]} failed, see above")
        return done.stdout.decode().strip()

    def import_base(self, base: Path) -> None:
        """Make an image of a folder with a root file system."""
        with subprocess.Popen(["tar", "-C", str(base), "-c", "."], stdout=subprocess.PIPE) as packing:
            command = self.command("podman", "import", "-q", "--change", f"ENV PATH={PATH}", "-", BASE)
            imported = subprocess.run(command, stdin=packing.stdout, stdout=subprocess.DEVNULL, env=self.environment)
        check(imported.returncode == 0 and packing.returncode == 0, "podman import failed, see above")

    @contextmanager
    def container(self) -> Iterator[tuple[str, Path]]:
        """Gives the name and the folder where the root file system is mounted."""
        name = self.buildah("from", IMAGE)
        try:
            yield name, Path(self.buildah("mount", name))
        finally:
            self.buildah("rm", name)

    def empty(self) -> None:
        self.buildah("rm", "--all")
        self.buildah("rmi", "--all", "--force")


def make_base(folder: Path, mirror: str) -> Path:
    base = folder / "base"
    if not (base / "usr").exists():
        say("making a base of Debian 12 by debootstrap (some minutes)")
        log = folder / "debootstrap.log"
        with log.open("w") as sink:
            command = ["debootstrap", "--variant=minbase", "bookworm", str(base), mirror]
            done = subprocess.run(command, stdout=sink, stderr=subprocess.STDOUT)
        check(done.returncode == 0, f"debootstrap failed: {log}")
    return base


def build(store: Store, folder: Path, base: str) -> float:
    """Return the seconds that it took. pip's settings and certificate are passed as secrets."""
    started = time.monotonic()
    settings = pip_settings()
    with pip_conf(settings) as text:
        secret = folder / "pip.conf"
        secret.write_text(text)
        secrets = ["--secret", f"id=pip.conf,src={secret}"]
        if "cert" in settings:
            secrets += ["--secret", f"id=ca.crt,src={settings['cert']}"]
        revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
        arguments = ["--build-arg", f"CPU_BASE={base}", "--build-arg", f"REVISION={revision}", "--target", "cpu"]
        # The OCI format has no HEALTHCHECK.
        command = store.command("buildah", "bud", "--isolation=chroot", "--format=docker", *secrets, *arguments)
        log = folder / "build.log"
        try:
            with log.open("w") as sink:
                built = [*command, "-t", IMAGE, str(ROOT)]
                done = subprocess.run(built, stdout=sink, stderr=subprocess.STDOUT, env=store.environment)
        finally:
            secret.unlink()
        check(done.returncode == 0, f"the build failed: {log} ends with\n{log.read_text()[-2000:]}")
    return time.monotonic() - started


def configuration(store: Store, settings: dict[str, str]) -> dict[str, Any]:
    inspected = store.buildah("inspect", "--type=image", IMAGE)
    check(not any(word in inspected.encode() for word in private_words(settings)), "the history holds pip's addresses")
    found: dict[str, Any] = json.loads(inspected)["Docker"]["config"]
    check(found["User"] == "10001:10001", f"the user is {found['User']!r}")
    check(found["Entrypoint"] == ["tini", "--", "llava-api"], f"the entry point is {found['Entrypoint']}")
    check("/data" in found["Volumes"], "/data is no volume")
    missing = [name for name in ("title", "version", "revision", "licenses") if not found["Labels"].get(LABEL + name)]
    check(not missing, f"labels without a value: {missing}")
    check(found["Healthcheck"]["Test"][0] == "CMD", "there is no HEALTHCHECK")
    return found


def look_through(root: Path, settings: dict[str, str]) -> dict[str, int]:
    """Sizes in bytes. Raises Failed where something is in the image that has no business there."""
    places = [root / folder for folder in ("usr/bin", "usr/sbin", "usr/local/bin", "opt/llava-api/bin")]
    tools = [str(place / name) for place in places for name in TOOLS if os.path.lexists(place / name)]
    check(not tools, f"tools were left in the image: {tools}")
    traces = [str(path) for trace in TRACES for path in root.glob(trace)]
    check(not traces, f"the build left traces: {traces}")
    anyones = writable_by_all(root)
    check(not anyones, f"everybody could change {anyones[:10]}")
    private = private_words(settings)
    sizes = {"all": 0, "dependencies": 0, "server": 0}
    for path in files_of(root):
        status = path.lstat()
        inside = path.relative_to(root).as_posix()
        part = "server" if inside.startswith("opt/llava-api/app/") else "dependencies"
        sizes["all"] += status.st_size
        if inside.startswith("opt/llava-api/"):
            sizes[part] += status.st_size
        check(status.st_uid != 10001 or inside.startswith("data"), f"the server's user could change /{inside}")
        # Where an address would stand: settings, logs, and packages' own records of where they come from.
        if stat.S_ISREG(status.st_mode) and (not inside.startswith(("usr/", "opt/")) or ".dist-info/" in inside):
            content = path.read_bytes()
            check(not any(word in content for word in private), f"/{inside} holds an address from pip's settings")
    if "cert" in settings:
        ours, theirs = Path(settings["cert"]), root / CERTIFICATES.lstrip("/")
        check(digest(ours) != digest(theirs) or ours == Path(CERTIFICATES), "this machine's certificates are in it")
    return sizes


def writable_by_all(root: Path) -> list[str]:
    """Files and folders, but for those like /tmp in which only an owner may take away what is there."""
    found = []
    for folder, folders, names in os.walk(root):
        if Path(folder) == root:
            folders[:] = [name for name in folders if name not in ("proc", "sys", "dev")]
        for name in [*folders, *names]:
            mode = os.lstat(os.path.join(folder, name)).st_mode
            shared = stat.S_ISLNK(mode) or (stat.S_ISDIR(mode) and mode & stat.S_ISVTX)
            if mode & stat.S_IWOTH and not shared:
                found.append(os.path.join(folder, name))
    return found


def private_words(settings: dict[str, str]) -> list[bytes]:
    """The addresses and paths in pip's settings, except pypi.org, which is public."""
    words = [word for option, value in settings.items() if option in PASSED_ON for word in value.split()]
    return [word.encode() for word in words if "/" in word and not word.startswith("https://pypi.org/")]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files_of(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        for name in [*names, *(name for name in folders if os.path.islink(os.path.join(folder, name)))]:
            yield Path(folder, name)


def tree(root: Path) -> dict[str, tuple[int, int, int]]:
    """Every file and folder with its mode, size and time of change, except those that are mounted over when it runs."""
    found = {}
    for folder, folders, names in os.walk(root):
        if Path(folder) == root:
            folders[:] = [name for name in folders if name not in ("proc", "sys", "dev", "data", "tmp", "run")]
        for name in [*folders, *names]:
            status = os.lstat(os.path.join(folder, name))
            size = 0 if os.path.isdir(os.path.join(folder, name)) else status.st_size
            found[os.path.join(folder, name)] = (status.st_mode, size, status.st_mtime_ns if size else 0)
    return found


def try_with_buildah(store: Store, config: dict[str, Any], folder: Path) -> None:
    """Run it as the image declares, and check that it writes only into what is mounted."""
    say("running it by buildah run")
    port = free_port()
    with store.container() as (name, root):
        before = tree(root)
        command = ["run", "--isolation=chroot", f"--env=LLAVA_PORT={port}", name, "--"]
        serving = store.command("buildah", *command, *config["Entrypoint"], *config["Cmd"])
        with running_image(serving, port, folder / "buildah-run.log", store.environment) as server:
            server.wait_until_ready()
            server.try_it(store.command("buildah", *command, *config["Healthcheck"]["Test"][1:]))
        changed = sorted(path for path, was in tree(root).items() ^ before.items())
        check(not changed, f"it wrote outside the named folders: {changed[:10]}")
    say("  nothing was written outside /data, /tmp, /run and /dev")


def try_read_only(store: Store, config: dict[str, Any], folder: Path) -> None:
    say("running it on a read-only root, without capabilities, with 64 MB of /dev/shm")
    port = free_port()
    variables = dict(pair.split("=", 1) for pair in config["Env"]) | {"LLAVA_PORT": str(port)}
    with store.container() as (_, root):
        outside = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", READ_ONLY, "sh", str(root)]
        command = [*outside, *config["Entrypoint"], *config["Cmd"]]
        with running_image(command, port, folder / "read-only.log", variables) as server:
            server.wait_until_ready()
            entering = ["nsenter", f"--target={server.tini}", "--mount", "--pid", "--root", "--wd=/"]
            as_user = ["setpriv", "--reuid=10001", "--regid=10001", "--clear-groups"]
            server.try_it([*entering, *as_user, *config["Healthcheck"]["Test"][1:]])
            touched = subprocess.run([*entering, "touch", "/opt/llava-api/x"], capture_output=True, env=variables)
            check(b"Read-only file system" in touched.stderr, "the root file system was not read-only at all")
            written = sorted(str(path.relative_to(server.root)) for path in server.root.glob("data/*/*"))
            sockets = len(list(server.root.glob("tmp/*")))
            say(f"  it wrote below /{', /'.join(written)}, and {sockets} sockets and files in /tmp")


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the CPU image by buildah and try it.")
    parser.add_argument("--base", help="image, or folder with a root file system, to build on; default: debootstrap's")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "image-test", help="where all of it is kept")
    parser.add_argument("--mirror", default="http://deb.debian.org/debian", help="where debootstrap takes Debian from")
    parser.add_argument("--keep", action="store_true", help="keep image and cache")
    parser.add_argument("--no-build", action="store_true", help="try the image that an earlier run kept")
    chosen = parser.parse_args()
    missing = [name for name in ("buildah", "podman", "debootstrap", "unshare") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        print(f"[image] needs root, and Debian's buildah, podman, debootstrap; missing: {missing}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = chosen.folder.absolute()
    store = Store(folder)
    try:
        if not chosen.no_build:
            base = chosen.base or str(make_base(folder, chosen.mirror))
            if Path(base).is_dir():
                store.import_base(Path(base))
                base = BASE
            say(f"building (the dependencies are 3.5 GB); what it says: {folder / 'build.log'}")
            say(f"built in {build(store, folder, base):.0f} s")
        settings = pip_settings()
        config = configuration(store, settings)
        with store.container() as (_, root):
            sizes = look_through(root, settings)
        say("MB: " + ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in sizes.items()))
        try_with_buildah(store, config, folder)
        try_read_only(store, config, folder)
    except Failed as error:
        print(f"[image] failed: {error}", file=sys.stderr)
        return 1
    finally:
        if not chosen.keep:
            store.empty()
            shutil.rmtree(folder / "tmp", ignore_errors=True)
    say("passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
