//! Lets the programs and tests find libtorch.

fn main() {
    let rpath = std::env::var("DEP_STEPDOWN_TORCH_SHIM_RPATH").expect("torch-shim is a direct dependency");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{rpath}");
}
