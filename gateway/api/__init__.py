"""The two ports: the listening side, the edge, the endpoints, and what ops ask."""
