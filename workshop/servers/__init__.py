"""The servers: found by URL, or started here from wheels or PATH (lifecycle.py)."""
