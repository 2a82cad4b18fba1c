"""CORS, as Starlette does it, but for refusals: they are errors in the shape of all the others."""

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from llava_api.errors import ErrorCode, InvalidRequest
from llava_api.server.error_handlers import error_response

REFUSED = (
    "This server does not take such requests from that origin: it allows the origins of --cors-allow-origins, "
    "and the methods GET, POST and DELETE."
)


class Cors(CORSMiddleware):
    def preflight_response(self, request_headers: Headers) -> Response:
        made = super().preflight_response(request_headers)
        if made.status_code < 400:
            return made
        kept = {name: value for name, value in made.headers.items() if name not in ("content-length", "content-type")}
        return error_response(InvalidRequest(REFUSED, code=ErrorCode.ORIGIN_NOT_ALLOWED), kept)
