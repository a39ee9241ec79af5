"""Registries: references, credentials, mirrors, reading and writing over the HTTP of ``transport``."""
