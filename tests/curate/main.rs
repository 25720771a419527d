//! What `curate` does, seen from outside.
