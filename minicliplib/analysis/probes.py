from .relevance import altered  # noqa: F401
