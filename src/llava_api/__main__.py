"""``python -m llava_api`` is ``llava-api``."""

from llava_api.cli.main import main

main()
