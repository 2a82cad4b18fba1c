"""HTTP: the only home of FastAPI, Starlette and uvicorn (beside ``cli``)."""
