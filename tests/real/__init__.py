"""A real engine to stand behind the gateway: llama.cpp's own server, with a model small enough to be kept here."""
