"""The real APIs of OpenAI and of DashScope (Qwen) behind a real gateway, with a key of whoever runs it: make test-live.

What it costs: about forty short calls for each, together a few thousand tokens in and out, which with the small models that
are asked for is less than a US cent. At its end it says how many tokens there were.
"""
