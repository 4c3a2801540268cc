"""The HTTP service: ``self1e serve``, or `create_app` under any ASGI server. Needs the extra ``serve``."""
