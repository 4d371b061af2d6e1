"""A reverse proxy that services point their OpenAI base URL at."""

__version__ = "0.1.0"
