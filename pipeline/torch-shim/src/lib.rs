//! torch-shim
