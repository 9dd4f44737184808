"""A reward behind HTTP: ``vidalign serve``, and ``vidalign-serve`` in an environment of its own.

The package needs fastapi, uvicorn, prometheus_client, numpy and torch, and nothing of vidalign: the distribution
``vidalign-serve`` packs the same files as ``vidalign_serve``. That is why they import each other relatively and run on
Python 3.10. The client is the reward `vidalign.rewards.remote`; both share the wire format of `wire`.
"""
