//! Compiles the shim and tells the crates above where the real libtorch lies.
//!
//! A crate that makes programs or tests with torch needs this build.rs of its own:
//!
//! ```ignore
//! fn main() {
//!     let rpath = std::env::var("DEP_STEPDOWN_TORCH_SHIM_RPATH").expect("torch-shim is a direct dependency");
//!     println!("cargo:rustc-link-arg=-Wl,-rpath,{rpath}");
//! }
//! ```

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    let lib = PathBuf::from(env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys names its library folder"));
    // The wheel's libraries find each other by DT_RPATH relative to where they really lie, so that a
    // folder of links will do for the linker but not for the loader.
    let real = lib.join("libtorch_cpu.so").canonicalize().unwrap_or_else(|error| {
        panic!("no libtorch_cpu.so in {} ({error}): set LIBTORCH, or run `make setup`", lib.display())
    });
    let rpath = real.parent().expect("a file lies in a folder");
    println!("cargo:rpath={}", rpath.display());
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", rpath.display());

    let include = include_folder(&lib);
    println!("cargo:rerun-if-changed=src/cpp");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .include(&include)
        // Headers of single operators: a third of the compile time of <ATen/ATen.h>.
        .define("AT_PER_OPERATOR_HEADERS", None)
        // As libtorch itself was compiled: its headers check in debug builds what its release does not keep.
        .define("NDEBUG", None)
        .warnings(false)
        .flag("-Wall")
        .flag("-Wno-unused-parameter")
        .file("src/cpp/shim.cpp")
        .file("src/cpp/meter.cpp")
        .compile("stepdown_torch_shim");
    println!("cargo:rustc-link-lib=dylib=dl");
}

/// `include` beside `lib`, as torch-sys expects it, unless LIBTORCH_INCLUDE says otherwise.
fn include_folder(lib: &Path) -> PathBuf {
    println!("cargo:rerun-if-env-changed=LIBTORCH_INCLUDE");
    let root = match env::var_os("LIBTORCH_INCLUDE") {
        Some(root) => PathBuf::from(root),
        None => lib.parent().expect("lib lies in libtorch").to_path_buf(),
    };
    root.join("include")
}
