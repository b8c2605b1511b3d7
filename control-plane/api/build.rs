//! Compiles the protos with a protobuf compiler written in Rust, so that no
//! system package is needed, and leaves the descriptor set for reflection.

use std::env;
use std::error::Error;
use std::fs;
use std::path::PathBuf;

use prost_build::Config;
use protox::prost::Message;

const PROTOS: [&str; 3] = [
    "proto/bowline/dataplane/v1/pool.proto",
    "proto/bowline/dataplane/v1/resources.proto",
    "proto/bowline/dataplane/v1/service.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    let mut config = Config::new();
    config.enable_type_names();
    tonic_prost_build::configure().compile_fds_with_config(descriptors, config)?;
    Ok(())
}
