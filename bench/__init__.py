"""What the gateway costs, measured against other proxies in the same run. `python -m bench --help`, and README.md."""
