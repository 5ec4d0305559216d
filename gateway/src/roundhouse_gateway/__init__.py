"""Roundhouse's gateway: several LLM engines behind one OpenAI-compatible endpoint."""

__version__ = "0.1.0"
