"""Annotations: what rows, manifests, documents and names say of files, as captions and records."""
