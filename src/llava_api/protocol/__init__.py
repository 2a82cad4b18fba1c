"""The objects of requests and replies as pydantic models. Docstrings of fields appear in the OpenAPI document."""
