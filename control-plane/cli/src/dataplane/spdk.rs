//! What `--engine spdk` serves, and how SPDK is started for it.

use std::path::Path;

use bowline_server::{BackingConfig, SPDK_BUILD, SpdkBuild, SpdkOptions, SpdkSource};

use super::flags::{DataplaneFlags, Engine};
use crate::error::CliError;
use crate::size::Size;

/// What a device of SPDK other than a drive begins with.
const BDEV: &str = "bdev:";

/// Bytes of a mebibyte, which SPDK's memory is counted in.
const MIB: u64 = 1 << 20;

/// The device, and the options; `None` when another engine is asked for.
pub(super) fn backing(
    flags: &DataplaneFlags,
) -> Result<Option<(BackingConfig, SpdkOptions)>, CliError> {
    if flags.engine != Some(Engine::Spdk) {
        return match stray(flags) {
            None => Ok(None),
            Some(flag) => Err(
                CliError::usage(format!("{flag} is given without --engine spdk"))
                    .cause("it is for SPDK alone")
                    .hint("add --engine spdk, or leave it out"),
            ),
        };
    }
    if SPDK_BUILD == SpdkBuild::None {
        return Err(CliError::usage("--engine spdk is not in this executable")
            .cause("it was built without SPDK, which is optional")
            .hint(
                "build one where SPDK is installed: cargo build --release --features spdk (see \
                 docs/guide/spdk.md), or use --engine kernel",
            ));
    }
    let Some(device) = &flags.device else {
        return Err(
            CliError::usage("--engine spdk has nothing to serve: no --device")
                .cause("memory is served without an engine")
                .hint("give --device 0000:01:00.0 (a drive) or --device bdev:NAME"),
        );
    };
    if flags.shared_device == Some(true) {
        return Err(CliError::usage("a device of SPDK cannot be shared")
            .cause("it belongs to one process")
            .hint("leave --shared-device out"));
    }
    let source = source(device)?;
    let options = options(flags, &source)?;
    Ok(Some((BackingConfig::Spdk(source), options)))
}

/// A flag or device that only SPDK has.
fn stray(flags: &DataplaneFlags) -> Option<&'static str> {
    let names_bdev = |path: &Path| path.to_str().is_some_and(|text| text.starts_with(BDEV));
    if flags.spdk_config.is_some() {
        Some("--spdk-config")
    } else if flags.spdk_memory.is_some() {
        Some("--spdk-memory")
    } else if flags.no_huge == Some(true) {
        Some("--no-huge")
    } else if flags.device.as_deref().is_some_and(names_bdev) {
        Some("--device bdev:NAME")
    } else {
        None
    }
}

fn source(device: &Path) -> Result<SpdkSource, CliError> {
    let text = device.to_str().unwrap_or_default();
    let source = match text.strip_prefix(BDEV) {
        Some("") => None,
        Some(name) => Some(SpdkSource::Bdev(name.to_owned())),
        None => pci_address(text).map(SpdkSource::Drive),
    };
    source.ok_or_else(|| {
        CliError::usage(format!(
            "--device {} is no device of SPDK",
            device.display()
        ))
        .cause("SPDK does not use devices of the kernel")
        .hint(
            "give the PCI address of a drive (`lspci -D` lists them), such as 0000:01:00.0, or \
                 bdev:NAME",
        )
    })
}

/// A PCI address in full, given with or without its domain.
fn pci_address(text: &str) -> Option<String> {
    let (rest, function) = text.rsplit_once('.')?;
    let (rest, device) = rest.rsplit_once(':')?;
    let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
    let number = |digits: &str, most: u32| {
        let is_hexadecimal = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u32::from_str_radix(digits, 16).ok()?;
        (is_hexadecimal && number <= most).then_some(number)
    };
    Some(format!(
        "{:04x}:{:02x}:{:02x}.{:x}",
        number(domain, u32::MAX)?,
        number(bus, 0xFF)?,
        number(device, 0x1F)?,
        number(function, 7)?,
    ))
}

fn options(flags: &DataplaneFlags, source: &SpdkSource) -> Result<SpdkOptions, CliError> {
    let no_huge = flags.no_huge.unwrap_or(false);
    let is_drive = matches!(source, SpdkSource::Drive(_));
    if is_drive && no_huge {
        return Err(CliError::usage("--no-huge is given with a drive")
            .cause("a drive reads and writes memory by itself, which has to be in huge pages")
            .hint("leave --no-huge out, and reserve pages with `sysctl vm.nr_hugepages=512`"));
    }
    if !is_drive && flags.spdk_config.is_none() {
        return Err(
            CliError::usage(format!("there is nothing that makes {source}"))
                .cause("block devices of SPDK come from its configuration")
                .hint("name it with --spdk-config FILE"),
        );
    }
    let mib = flags.spdk_memory.map(mib).transpose()?;
    Ok(SpdkOptions {
        config: flags.spdk_config.clone(),
        drives: match source {
            // The others stay with whoever has them.
            SpdkSource::Drive(address) if flags.spdk_config.is_none() => {
                Some(vec![address.clone()])
            }
            SpdkSource::Drive(_) | SpdkSource::Bdev(_) => None,
        },
        huge_pages: !no_huge,
        memory_mib: mib,
    })
}

fn mib(size: Size) -> Result<u32, CliError> {
    // SPDK counts in signed numbers.
    let mib = i32::try_from(size.0 / MIB).ok();
    let mib = mib.and_then(|mib| u32::try_from(mib).ok());
    mib.filter(|mib| *mib > 0 && size.0.is_multiple_of(MIB))
        .ok_or_else(|| {
            CliError::usage(format!("--spdk-memory {size} is not possible"))
                .hint("give a multiple of 1MiB; 512MiB are enough for a few cores")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_whole_mebibytes_that_spdk_can_count() {
        for (bytes, expected) in [
            (512 << 20, Some(512)),
            (0, None),
            ((1 << 20) + 1, None),
            (1 << 51, None),
        ] {
            assert_eq!(mib(Size(bytes)).ok(), expected, "{bytes}");
        }
    }

    #[test]
    fn pci_addresses_are_read_with_and_without_domain() {
        for (text, address) in [
            ("0000:01:00.0", Some("0000:01:00.0")),
            ("01:00.0", Some("0000:01:00.0")),
            ("10000:E1:1f.7", Some("10000:e1:1f.7")),
            ("/dev/nvme0n1", None),
            ("0000:01:20.0", None),
            ("0000:01:00.8", None),
            ("0000:+1:00.0", None),
            ("01.0", None),
            ("", None),
        ] {
            assert_eq!(pci_address(text).as_deref(), address, "{text}");
        }
    }
}
