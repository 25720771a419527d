//! What `curate` does, seen from outside: the real program, real tables, a real server on loopback.

mod bad_input;
mod placeholders;
mod resume;
mod rows;
mod s3;
mod server;
mod steps;
mod stores;
mod tables;
mod world;
