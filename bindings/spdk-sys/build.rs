//! Builds the shim, over SPDK or over memory, and the bindings to its header. Without a feature there
//! is nothing to do.

#[cfg(any(feature = "spdk", feature = "double"))]
#[path = "build/shim.rs"]
mod shim;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=shim");
    #[cfg(any(feature = "spdk", feature = "double"))]
    shim::build();
}
