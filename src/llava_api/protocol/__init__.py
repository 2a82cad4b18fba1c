"""OpenAI's wire objects as pydantic models; field names and docstrings are the API's."""
