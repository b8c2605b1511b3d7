//! Discovery log. [FABRICS-1.1 §5.3]

use crate::ControllerId;
use crate::layout::layout;
use crate::nqn::{Nqn, NqnError};

layout! {
    /// Header of the Discovery log, LID 70h; `numrec` entries of 1024 bytes follow it.
    /// [FABRICS-1.1 §5.3]
    pub struct DiscoveryHeader: 1024 bytes {
        /// Generation Counter, changes with the content.
        genctr: u64 = 0,
        /// Number of Records.
        numrec: u64 = 8,
        /// Record Format; only 0 exists.
        recfmt: u16 = 16,
    }
}

layout! {
    /// Discovery Log Page Entry. [FABRICS-1.1 §5.3]
    pub struct DiscoveryEntry: 1024 bytes {
        /// Transport Type: [`Transport`].
        trtype: u8 = 0,
        /// Address Family: [`Adrfam`].
        adrfam: u8 = 1,
        /// Subsystem Type: [`Subtype`].
        subtype: u8 = 2,
        /// Transport Requirements: [`Treq`].
        treq: u8 = 3,
        /// Port ID.
        portid: u16 = 4,
        /// Controller ID; [`ControllerId::DYNAMIC`] in the dynamic model.
        cntlid: ControllerId = 6,
        /// Admin Max SQ Size in entries, at least 32; not 0's based.
        asqsz: u16 = 8,
        /// Entry Flags: `EFLAGS_*`.
        eflags: u16 = 10,
        /// Transport Service Identifier: the port in decimal ASCII, NUL or space padded.
        trsvcid: [u8; 32] = 32,
        /// NVM Subsystem Qualified Name, NUL-terminated.
        subnqn: [u8; 256] = 256,
        /// Transport Address in ASCII, NUL or space padded.
        traddr: [u8; 256] = 512,
        /// Transport Specific Address Subtype of TCP: Security Type, [`SecType`].
        sectype: u8 = 768,
    }
}

impl DiscoveryEntry {
    /// EFLAGS: Duplicate Returned Information; another port says the same.
    pub const EFLAGS_DUPRETINFO: u16 = 1 << 0;
    /// EFLAGS: Explicit Persistent Connection Support for Discovery controllers.
    pub const EFLAGS_EPCSD: u16 = 1 << 1;

    /// The subsystem's name.
    pub fn nqn(&self) -> Result<Nqn, NqnError> {
        Nqn::decode(&self.subnqn)
    }

    /// Transport address without padding; `None` if it is not UTF-8.
    pub fn address(&self) -> Option<&str> {
        text(&self.traddr)
    }

    /// Transport service (the port) without padding; `None` if it is not UTF-8.
    pub fn service(&self) -> Option<&str> {
        text(&self.trsvcid)
    }

    /// Sets the transport address; `None`, and nothing changed, if it is too long.
    #[must_use]
    pub fn with_address(mut self, address: &str) -> Option<Self> {
        set_text(&mut self.traddr, address).then_some(self)
    }

    /// Sets the transport service; `None` if it is too long.
    #[must_use]
    pub fn with_service(mut self, service: &str) -> Option<Self> {
        set_text(&mut self.trsvcid, service).then_some(self)
    }
}

/// Up to the first NUL, without trailing spaces.
fn text(field: &[u8]) -> Option<&str> {
    let bytes = field.split(|&byte| byte == 0).next().unwrap_or_default();
    core::str::from_utf8(bytes)
        .ok()
        .map(|text| text.trim_end_matches(' '))
}

/// Fills a field with text and NULs, of which at least one remains.
fn set_text(field: &mut [u8], text: &str) -> bool {
    let fits = text.len() < field.len();
    if fits {
        field.fill(0);
        crate::wire::put(field, 0, text.as_bytes());
    }
    fits
}

macro_rules! codes {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $value:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name {
            $($(#[$doc])* $variant = $value,)*
        }

        impl $name {
            /// The number on the wire.
            pub const fn wire(self) -> u8 {
                self as u8
            }

            /// The value of this number, if we know it.
            pub const fn from_wire(wire: u8) -> Option<Self> {
                match wire {
                    $($value => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

codes! {
    /// Transport types (TRTYPE). [FABRICS-1.1 §5.3]
    Transport {
        /// RDMA.
        Rdma = 1,
        /// Fibre Channel.
        FibreChannel = 2,
        /// TCP.
        Tcp = 3,
        /// Within one host.
        Loop = 254,
    }
}

codes! {
    /// Address families (ADRFAM). [FABRICS-1.1 §5.3]
    Adrfam {
        /// IPv4.
        Ipv4 = 1,
        /// IPv6.
        Ipv6 = 2,
    }
}

codes! {
    /// Subsystem types (SUBTYPE). [FABRICS-1.1 §5.3]
    Subtype {
        /// Another discovery subsystem.
        Referral = 1,
        /// An NVM subsystem.
        Nvm = 2,
        /// The discovery subsystem that is answering.
        CurrentDiscovery = 3,
    }
}

codes! {
    /// Secure channel requirement, TREQ bits 1:0. [FABRICS-1.1 §5.3]
    SecureChannel {
        /// Not specified.
        Unspecified = 0,
        /// Required.
        Required = 1,
        /// Not required.
        NotRequired = 2,
    }
}

codes! {
    /// Security types of TCP (SECTYPE). [TCP-1.0 §3.6.1]
    SecType {
        /// No security.
        None = 0,
        /// TLS 1.2.
        Tls12 = 1,
        /// TLS 1.3.
        Tls13 = 2,
    }
}

/// Transport Requirements. [FABRICS-1.1 §5.3]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Treq {
    /// Is a secure channel needed? `None` for the reserved value.
    pub secure_channel: Option<SecureChannel>,
    /// The controller can do without SQ flow control.
    pub sq_flow_control_disable: bool,
}

impl Treq {
    /// The byte on the wire; the reserved value becomes "not specified".
    pub fn wire(self) -> u8 {
        let channel = self
            .secure_channel
            .unwrap_or(SecureChannel::Unspecified)
            .wire();
        channel | u8::from(self.sq_flow_control_disable) << 2
    }

    /// From the byte on the wire.
    pub const fn from_wire(wire: u8) -> Self {
        Self {
            secure_channel: SecureChannel::from_wire(wire & 0b11),
            sq_flow_control_disable: wire & 0b100 != 0,
        }
    }
}
