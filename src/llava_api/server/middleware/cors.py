"""Starlette's CORS, except that a refused preflight request gets an error in the API's own shape."""

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from llava_api.errors import ErrorCode, InvalidRequest
from llava_api.server.error_handlers import error_response

REFUSED = (
    "Requests from this origin, or with this method, are not allowed. The allowed origins are those of "
    "--cors-allow-origins, and the allowed methods are GET, POST and DELETE."
)


class Cors(CORSMiddleware):
    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        body_headers = ("content-length", "content-type")
        kept = {name: value for name, value in response.headers.items() if name not in body_headers}
        return error_response(InvalidRequest(REFUSED, code=ErrorCode.ORIGIN_NOT_ALLOWED), kept)
