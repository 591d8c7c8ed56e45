"""Gaps close themselves: plan what is missing, fetch it by REST, seal what the exchange no longer has; no Ray."""
