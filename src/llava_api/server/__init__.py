"""HTTP: the only home of FastAPI, Starlette, sse-starlette and uvicorn (beside ``cli``)."""
