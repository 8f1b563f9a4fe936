//! Sets the linker's options for the object.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // With this option, copies and fills of known size become stores instead of calls to byte loops. The calls cost more. On kernels with
    // mitigations against speculation, the verifier also rejects them without CAP_PERFMON.
    println!("cargo:rustc-link-arg-bins=--disable-expand-memcpy-in-order");
}
