"""Engines as replicas of Ray Serve (extra ``ray``), on one machine or a cluster of trusted ones.

Each replica runs the engine process of :mod:`dsv2.service.worker` beside itself and passes on what
the API process says and hears, as the same MessagePack frames. Around these frames Ray pickles on
its own wire: whoever reaches Ray's ports can run code, so they belong in a trusted network.
"""
