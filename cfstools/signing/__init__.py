"""Keys, signatures and the policy over them; the only importer of cryptography."""
