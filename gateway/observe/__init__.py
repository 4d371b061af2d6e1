"""What ops see: one log line and one set of series for each call, written once, at its end."""
