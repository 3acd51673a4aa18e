"""Adapters: the library inside other people's programs, each imported on its own."""
