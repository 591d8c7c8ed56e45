"""Ray Serve deployments: HTTP on top of `k2ray.query` and the state that the actors publish."""
