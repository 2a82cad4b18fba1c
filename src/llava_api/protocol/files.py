"""``/v1/files``: the form of an upload, the query of a list, and the replies."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, RootModel, WithJsonSchema

from llava_api.protocol.wire import Listed, Page, RequestObject, WireObject, is_none

IMAGE_PURPOSES = ("vision", "user_data")
"""Purposes of files that are images, which requests name by their ids."""
MAX_PAGE = 10_000
BINARY = {"type": "string", "format": "binary"}


class ExpiresAfter(RequestObject):
    """In a form its fields are called ``expires_after[anchor]`` and ``expires_after[seconds]``."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=2_592_000)


class FileForm(RequestObject):
    """The fields of a ``multipart/form-data`` body, in any order."""

    file: Annotated[str, WithJsonSchema(BINARY)]
    """The file. Its name is for people, and may be anything."""
    purpose: Literal["batch", "vision", "user_data"]
    """batch: the lines of a batch; vision and user_data: an image, which requests then name by its id."""
    expires_after: ExpiresAfter | None = None
    """When the file is deleted; default: as --file-lifetime-seconds says."""


class FileListQuery(RequestObject):
    after: str | None = None
    """The last id of the page before; the file itself may have been deleted since."""
    limit: int = Field(MAX_PAGE, ge=1, le=MAX_PAGE)
    order: Literal["asc", "desc"] = "desc"
    """By the time of creation: asc begins with the oldest file."""
    purpose: str | None = None
    """Only files of this purpose."""


class FileContent(RootModel[Annotated[str, WithJsonSchema(BINARY)]]):
    media_type: ClassVar[str] = "application/octet-stream"


class FileObject(Listed):
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    """Unix time in seconds."""
    expires_at: int | None = Field(None, exclude_if=is_none)
    """When it is deleted; absent if never."""
    filename: str
    purpose: Literal["batch", "batch_output", "vision", "user_data"]
    status: Literal["processed"] = "processed"


class FileList(Page[FileObject]):
    pass


class DeletedFile(WireObject):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True
