#!/usr/bin/env bash
# rustc, under a name that is this clone's own. Clones share Cargo's intermediate files, in which a crate of the workspace
# goes by its name and its compiler's path, and is taken for current if its sources are older: without this, one clone
# would be given another's programs. Not in sh: dash passes on no variables with a dash, such as CARGO_BIN_EXE_encode-latents.
exec "$@"
