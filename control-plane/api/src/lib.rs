//! The gRPC interfaces of bowline: messages, clients and servers made from the
//! `.proto` files beside this crate, and the errors that travel over them.
#![forbid(unsafe_code)]

mod error;

pub use error::{ERROR_DOMAIN, Failure, Reason};

/// `bowline.dataplane.v1`: management of one data plane.
pub mod dataplane {
    /// Version 1.
    #[allow(
        missing_docs,
        clippy::all,
        clippy::allow_attributes_without_reason,
        clippy::too_many_lines,
        reason = "generated; documented in the protos"
    )]
    pub mod v1 {
        tonic::include_proto!("bowline.dataplane.v1");
    }
}

/// Descriptors of every proto of this crate, for the gRPC reflection service.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
