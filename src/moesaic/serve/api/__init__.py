"""The HTTP server: OpenAI's protocol over an engine, and what tells of it: health, metrics, a live view."""
