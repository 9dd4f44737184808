"""The embedded worlds: everything in them reaches the rest of the package through the registry."""
