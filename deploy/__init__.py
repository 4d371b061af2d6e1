"""What stands around a running gateway: configs, dashboards, rules. Nothing here is part of the gateway."""
