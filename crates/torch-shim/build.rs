//! Compiles `cpp/` (all but `nccl.cpp`, see there) against the headers of the libtorch that torch-sys found.

use std::env;
use std::path::PathBuf;

fn main() -> Result<(), String> {
    println!("cargo:rerun-if-changed=cpp");
    println!("cargo:rerun-if-env-changed=LIBTORCH_INCLUDE");
    let lib = PathBuf::from(env::var("DEP_TCH_LIBTORCH_LIB").map_err(|_| {
        "torch-sys did not say where libtorch lies: run scripts/setup-libtorch.sh and set LIBTORCH to the folder it prints"
    })?);
    // torch-sys exports only its lib folder; the headers lie beside it unless LIBTORCH_INCLUDE says otherwise.
    let root = match env::var_os("LIBTORCH_INCLUDE") {
        Some(root) => PathBuf::from(root),
        None => lib
            .parent()
            .map(PathBuf::from)
            .ok_or("the lib folder of libtorch has no parent folder")?,
    };
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        // The headers of libtorch do not compile without warnings; ours would drown in them.
        .warnings(false)
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        // c10d's headers are empty without these.
        .define("USE_DISTRIBUTED", None)
        .define("USE_C10D_GLOO", None)
        .include("cpp/gloo_headers")
        .include(root.join("include"))
        .include(root.join("include/torch/csrc/api/include"))
        .files([
            "cpp/shim.cpp",
            "cpp/checkpoint.cpp",
            "cpp/collective.cpp",
            "cpp/int8.cpp",
            "cpp/onednn.cpp",
        ])
        .compile("flywheel_torch_shim");
    // Sums in any order, so that the compiler can make vectors of them; nothing of libtorch is compiled that way. Never without
    // optimisation: these loops are a part of what a request costs, also in a build for tests.
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(3)
        .warnings(false)
        .flags([
            "-fassociative-math",
            "-fno-signed-zeros",
            "-fno-trapping-math",
            "-fno-math-errno",
        ])
        .file("cpp/kernels.cpp")
        .compile("flywheel_kernels");
    println!("cargo:rustc-link-search=native={}", lib.display());
    println!("cargo:rustc-link-lib=dylib=torch_cpu");
    println!("cargo:rustc-link-lib=dylib=c10");
    Ok(())
}
