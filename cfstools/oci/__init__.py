"""OCI and docker images as bytes: manifests, archives, a strict tar reader, layers."""
