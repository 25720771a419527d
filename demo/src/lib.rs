//! demo-world
