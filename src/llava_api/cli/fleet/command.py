"""``llava-api fleet FILE``: several models under one address, each loaded when it is asked for.

FILE is a TOML file with a [[models]] table for each model: model = "...", and any setting of llava-api serve. status,
load MODEL and unload MODEL ask the fleet that runs. docs/fleet.md says more.
"""

import argparse
import signal
import sys
from pathlib import Path

from llava_api.cli.flags import FRONT_SETTINGS, add_flags, given_flags, read_settings
from llava_api.cli.fleet import control
from llava_api.cli.fleet.models_file import NOT_IN_A_FLEET, read_models
from llava_api.cli.serve import MADE_KEY_NAME, opened_front
from llava_api.cli.terminal import set_up_logging
from llava_api.errors import StartupError
from llava_api.limits.keys import new_key
from llava_api.server.listening import listen_unix
from llava_api.settings import Settings
from llava_api.versions import all_versions

OWN_KEY_NAME = "llava-api-fleet"


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "fleet",
        help="serve several models under one address",
        usage="%(prog)s FILE [flags]\n       %(prog)s status|load MODEL|unload MODEL [--folder FOLDER]",
        description=__doc__,
        epilog="Other flags of llava-api serve are settings of all models: llava-api serve --help, docs/settings.md",
    )
    parser.add_argument("what", metavar="FILE|status|load|unload", help="the models' file, or a question to the fleet")
    parser.add_argument("model", nargs="?", metavar="MODEL", help="for load and unload")
    parser.add_argument(
        "--folder",
        type=Path,
        metavar="FOLDER",
        help="private folder for the sockets of the models' servers, and of status, load and unload; default: "
        "$XDG_RUNTIME_DIR/llava-api-fleet, or one in the folder for temporary files",
    )
    add_flags(parser, names=FRONT_SETTINGS)
    others = Settings.model_fields.keys() - {"served_model_name", *NOT_IN_A_FLEET, *FRONT_SETTINGS}
    add_flags(parser, names=others, shown=False)
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    folder = chosen.folder or control.default_folder()
    if chosen.what in control.COMMANDS:
        control.command(folder, chosen.what, chosen.model)
        return
    # Imported only now, as status does not need them.
    from llava_api.cli.fleet.backends import FleetBackends
    from llava_api.cli.route import serve_backends
    from llava_api.telemetry.fleet_metrics import FleetMetrics

    # Until uvicorn handles the signal.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    settings = read_settings(chosen)
    set_up_logging(settings.log_level, settings.log_format)
    models = read_models(Path(chosen.what).expanduser(), given_flags(chosen))
    folder = control.private_folder(folder)
    place = {"unix_socket": str(folder / control.SOCKET), "unix_socket_mode": "600"}
    try:
        listener = listen_unix(settings.model_copy(update=place))
    except StartupError as error:
        raise StartupError(f"a fleet runs in {folder} already: end it, or choose another --folder ({error})") from error
    with listener, opened_front(settings) as front:
        keys = list(settings.api_key)
        if front.made_key is not None:
            keys.append(f"{MADE_KEY_NAME}={front.made_key}")
        if front.keys.needed:
            keys.append(f"{OWN_KEY_NAME}={new_key()}")
        metrics = FleetMetrics(all_versions())
        serve_backends(FleetBackends(models, settings, folder, listener, keys, metrics), settings, front)
