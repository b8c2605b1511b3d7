//! Making a namespace: its backing may take for ever to open, and nothing else waits for it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bowline_api::dataplane::v1 as api;
use bowline_api::{Failure, Reason};
use tokio::sync::Mutex;
use uuid::Uuid;

use super::State;
use super::subsystem::number;
use crate::backing::{self, Opened};
use crate::catalog::Origin;
use crate::config::{BackingConfig, MEMORY_BLOCK_BYTES, SpdkSource};
use crate::manage::{NewNamespace, Reserved};
use crate::requests::Seen;
use crate::{names, view};

/// Makes a namespace. The state is not locked while the backing opens.
pub(super) async fn create(
    state: Arc<Mutex<State>>,
    request: api::CreateNamespaceRequest,
) -> Result<api::Namespace, Failure> {
    let nqn = names::parse_subsystem("parent", &request.parent)?;
    let (ticket, _running, mut reserved) = {
        let State {
            manager, requests, ..
        } = &mut *state.lock().await;
        let ticket = match requests.look_up("CreateNamespace", &request.request_id, &request)? {
            Seen::Done(answer) => return Ok(answer),
            Seen::New(ticket) => ticket,
        };
        let new = new(request.namespace)?;
        let reserved = manager.reserve(nqn, new)?;
        (ticket, requests.begin(ticket), reserved)
    };
    let opened = open(&state, &mut reserved, request.raw).await;
    let State {
        manager, requests, ..
    } = &mut *state.lock().await;
    manager.release(&reserved);
    let nsid = manager
        .attach_namespace(nqn, reserved.new, opened?, Origin::Api)
        .await?;
    let (_, namespace) = manager.namespace(nqn, nsid)?;
    let made = view::namespace(nqn, nsid, namespace);
    tracing::info!(subsystem_nqn = %nqn, nsid, "namespace added, until the process ends");
    requests.remember(ticket, &made);
    Ok(made)
}

/// Opens what is reserved, after finding out what its path really is.
async fn open(state: &Mutex<State>, reserved: &mut Reserved, raw: bool) -> Result<Opened, Failure> {
    if let Some(asked) = reserved.new.backing.path().map(Path::to_owned) {
        let allow = state.lock().await.manager.allow.clone();
        let real = off_thread(move || allow.resolve(&asked)).await?;
        state.lock().await.manager.claim(reserved, &real)?;
        reserved.new.backing = reserved.new.backing.at(real);
    }
    let NewNamespace {
        backing,
        block_bytes,
        ..
    } = reserved.new.clone();
    let spdk = state.lock().await.manager.spdk.clone();
    off_thread(move || {
        let opened = backing::open(&backing, block_bytes, spdk.as_ref())?;
        // Locked from here on: nobody makes a pool of it meanwhile.
        match raw {
            true => Ok(opened),
            false => backing::refuse_pool(&backing).map(|()| opened),
        }
    })
    .await
}

/// Devices and file servers may be slow to answer; the management thread must not wait.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(Failure::new(Reason::Internal, "opening was not finished")))
}

/// What a request for a namespace asks for. Its path is not looked at yet.
fn new(asked: Option<api::Namespace>) -> Result<NewNamespace, Failure> {
    let asked = asked.ok_or_else(|| Failure::invalid_field("namespace", "namespace is missing"))?;
    let nsid = u32::try_from(asked.nsid).map_err(|_| {
        Failure::invalid_field("namespace.nsid", format!("nsid {} is negative", asked.nsid))
    })?;
    let ana_group = number("namespace.ana_group_id", asked.ana_group_id)?;
    let block_bytes = block_bytes("namespace.block_size_bytes", asked.block_size_bytes)?;
    Ok(NewNamespace {
        nsid: (nsid != 0).then_some(nsid),
        backing: backing(asked.backing, block_bytes)?,
        block_bytes,
        uuid: identifier("namespace.uuid", &asked.uuid)?,
        nguid: identifier("namespace.nguid", &asked.nguid)?,
        ana_group: (ana_group != 0).then_some(ana_group),
    })
}

/// A logical block size, or 0 for the default.
pub(super) fn block_bytes(field: &'static str, asked: i32) -> Result<Option<u32>, Failure> {
    match asked {
        0 => Ok(None),
        512 => Ok(Some(512)),
        4096 => Ok(Some(4096)),
        other => {
            let message = format!("a block size of {other} bytes is not possible");
            Err(Failure::invalid_field(field, message)
                .hint("choose 512 or 4096, or 0 for the one of what is below"))
        }
    }
}

fn backing(
    asked: Option<api::Backing>,
    block_bytes: Option<u32>,
) -> Result<BackingConfig, Failure> {
    match asked.and_then(|backing| backing.kind) {
        Some(api::backing::Kind::Memory(memory)) => {
            let field = "namespace.backing.memory.size_bytes";
            let unit = i64::from(block_bytes.unwrap_or(MEMORY_BLOCK_BYTES));
            if memory.size_bytes <= 0 || memory.size_bytes % unit != 0 {
                let message = format!("{} bytes of memory are not possible", memory.size_bytes);
                return Err(Failure::invalid_field(field, message)
                    .hint(format!("give a positive multiple of {unit}")));
            }
            Ok(BackingConfig::Memory {
                size_bytes: memory.size_bytes.unsigned_abs(),
            })
        }
        Some(api::backing::Kind::Path(api::PathBacking { path, shared })) => {
            Ok(BackingConfig::Path {
                path: PathBuf::from(path),
                shared,
            })
        }
        Some(api::backing::Kind::Bdev(api::BdevBacking { name })) => {
            Ok(BackingConfig::Spdk(SpdkSource::Bdev(name)))
        }
        Some(api::backing::Kind::Volume(_)) => Err(Failure::invalid_field(
            "namespace.backing.volume",
            "a volume is exported by its own subsystem alone",
        )
        .hint("connect to that one: `bowline volume connect`")),
        None => Err(
            Failure::invalid_field("namespace.backing", "backing is missing")
                .hint("name memory, a path, or a block device of SPDK"),
        ),
    }
}

/// A UUID or NGUID of the caller's choice: 32 hexadecimal digits, with dashes or without.
pub(super) fn identifier(field: &'static str, text: &str) -> Result<Option<[u8; 16]>, Failure> {
    if text.is_empty() {
        return Ok(None);
    }
    match Uuid::parse_str(text) {
        Ok(identifier) if !identifier.is_nil() => Ok(Some(identifier.into_bytes())),
        _ => Err(
            Failure::invalid_field(field, format!("{field} {text:?} is not possible"))
                .hint("write 32 hexadecimal digits that are not all zero, or leave it out"),
        ),
    }
}
