"""Objectives that the four methods are compared with: each a published or a standard one."""
