"""HEAD wherever GET is answered: the same headers, and no body."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadAsGet:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        # A copy: the server itself must go on to know that no body is to follow.
        inner = {**scope, "method": "GET"}
        await self.app(inner, receive, send_without_body)
        if "route" in inner:
            # For what is told of the request.
            scope["route"] = inner["route"]
