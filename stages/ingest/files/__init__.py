"""Files of sources: what lies below a root, on any filesystem and in any archive, and the bytes of it."""
