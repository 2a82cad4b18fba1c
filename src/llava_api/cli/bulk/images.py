"""Image files that requests name: read only from one folder, and only if they are images."""

from pathlib import Path
from urllib.parse import quote

from llava_api.cli.bulk.job import ItemFailed
from llava_api.cli.chat.files import MAX_BYTES, read_file
from llava_api.cli.conversation import data_url
from llava_api.errors import BadImage, ErrorCode, StartupError
from llava_api.images.local_file import read_local_file
from llava_api.images.previews import media_type
from llava_api.images.source import ByteBudget


class ImageFolder:
    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().resolve()

    def data_url(self, name: str) -> str:
        """For a path in the folder or a ``file://`` URL. Raises ItemFailed.

        A question file may come from somebody else: it must not send other files of this machine to a server.
        """
        url = name if name.lower().startswith("file:") else f"file://{quote(str(self.folder / name))}"
        try:
            data = read_local_file(url, [str(self.folder)], ByteBudget(MAX_BYTES, MAX_BYTES, lambda size: None))
        except BadImage as error:
            if error.code == ErrorCode.IMAGE_URL_NOT_ALLOWED:
                message = f"There is no readable file {name} in {self.folder}: --image-folder names another folder."
                raise ItemFailed("image_not_found", message) from error
            raise ItemFailed(str(error.code), f"{name}: {error.message}") from error
        return as_data_url(data, name)


def read_image(path: Path) -> str:
    """The ``data:`` URL of a file that the person who runs the command named. Raises ItemFailed."""
    try:
        return as_data_url(read_file(str(path)), str(path))
    except StartupError as error:
        raise ItemFailed("image_not_found", str(error)) from error


def as_data_url(data: bytes, name: str) -> str:
    """Raises ItemFailed for what is no image."""
    try:
        return data_url(data, media_type(data))
    except BadImage as error:
        raise ItemFailed(str(error.code), f"{name}: {error.message}") from error
