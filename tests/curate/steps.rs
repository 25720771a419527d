//! Kills and errors of the disk at every step that makes something durable: each is the last of one process.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::server::Answer;
use crate::world::{Finished, World, jpeg};

/// Ends the process before the n-th call that publishes, flushes or removes a file, or lets the n-th flush fail.
const SHIM: &str = r#"
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>
static long calls, flushes;
static void step() {
    const char *at = getenv("KILL_AT");
    if (at && __sync_add_and_fetch(&calls, 1) == atol(at)) kill(getpid(), SIGKILL);
}
#define NEXT(type, name) reinterpret_cast<type>(dlsym(RTLD_NEXT, name))
extern "C" {
int rename(const char *from, const char *to) noexcept { step(); return NEXT(int (*)(const char *, const char *), "rename")(from, to); }
int fsync(int file) {
    step();
    const char *at = getenv("FAIL_AT");
    if (at && __sync_add_and_fetch(&flushes, 1) == atol(at)) { errno = EIO; return -1; }
    return NEXT(int (*)(int), "fsync")(file);
}
int unlink(const char *path) noexcept { step(); return NEXT(int (*)(const char *), "unlink")(path); }
int unlinkat(int folder, const char *path, int flags) noexcept { step(); return NEXT(int (*)(int, const char *, int), "unlinkat")(folder, path, flags); }
}
"#;

fn shim(world: &World) -> PathBuf {
    let (source, library) = (world.path("shim.cc"), world.path("shim.so"));
    fs::write(&source, SHIM).unwrap();
    let compiled = Command::new("g++").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
    assert!(compiled.expect("g++, which the build needs too").success());
    library
}

/// All steps with `CURATE_STEPS=1`; of each seven one otherwise, beginning with another in each test.
fn stride() -> usize {
    if std::env::var_os("CURATE_STEPS").is_some() { 1 } else { 7 }
}

/// Fault 18: what a disk says it could not write is not asked for again in this process.
#[test]
fn a_flush_that_fails_stops_the_run_which_goes_on_in_the_next() {
    let world = World::of_rows(60);
    let shim = shim(&world);
    world.curate(&[]).ends_with(0);
    let wanted = world.snapshot();
    for flush in [3, 6, 10] {
        world.forget();
        let mut command = world.command();
        let output = command.env("LD_PRELOAD", &shim).env("FAIL_AT", flush.to_string()).output().unwrap();
        Finished(output).ends_with(1).says("os error 5");
        assert!(!world.curated("index.json").exists());
        world.curate(&[]).ends_with(0);
        assert!(world.snapshot() == wanted, "flush {flush} failed");
    }
}

#[test]
fn every_step_may_be_the_last() {
    for (at, rules) in ["", "[duplicates]\nplaceholder_urls = 2\n"].into_iter().enumerate() {
        let world = World::of_rows(60);
        let shim = shim(&world);
        // Some contents under two URLs: where that makes placeholders, shards are made anew.
        for n in 20..40 {
            world.server.route(&format!("/{n}.jpg"), Answer::ok(jpeg(256, 256, n - 20)));
        }
        world.recipe(rules);
        world.curate(&[]).ends_with(0);
        let wanted = world.snapshot();
        let mut killed = 0;
        for step in (1 + at..).step_by(stride()) {
            world.forget();
            let mut command = world.command();
            let output = command.env("LD_PRELOAD", &shim).env("KILL_AT", step.to_string()).output().unwrap();
            let ended = output.status.code().is_some();
            if ended {
                Finished(output).ends_with(0);
                break;
            }
            killed += 1;
            world.curate(&[]).ends_with(0);
            assert!(world.snapshot() == wanted, "killed at step {step}");
        }
        eprintln!("killed at {killed} steps");
        assert!(killed >= 40 / stride(), "{killed} steps");
    }
}
