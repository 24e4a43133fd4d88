"""The agent beside a detector: `beamhub sync` sends an instrument's files to the service, live.

It needs no more than Python, httpx, pydantic and click, and imports nothing heavy.
"""
