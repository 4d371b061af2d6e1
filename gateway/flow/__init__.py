"""The way of a call: who asks (gate), where it goes (dispatch), how the reply gets back (relay, answer)."""
