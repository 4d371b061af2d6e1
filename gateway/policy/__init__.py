"""Rules that decide and do nothing else: told the time and given chance, each knows only what it has been told."""
