"""Load on an OpenAI-compatible server, and what it says about the server: ``dsv2 bench serve``.

It speaks the wire format alone, so that any such server can be measured, and nothing of ours is
shared between the two sides.
"""
