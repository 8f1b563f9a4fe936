//! How the linker makes the object.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Copies and fills of known size become stores in place of calls to loops over bytes, which cost more, and which the
    // verifier refuses to those who lack CAP_PERFMON on kernels that guard against speculation.
    println!("cargo:rustc-link-arg-bins=--disable-expand-memcpy-in-order");
}
