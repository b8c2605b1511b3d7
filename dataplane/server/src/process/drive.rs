//! What becomes of the pool's drive while it is served: whether the data plane is ready, and when
//! starting it again helps.

use std::fs::File;
use std::future;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bowline_pool::format::layout::SUPERBLOCK_OFFSETS;
use bowline_pool::format::superblock::{SUPERBLOCK_BYTES, Superblock};
use tokio::sync::watch;
use uuid::Uuid;

use crate::pool::{PoolFacts, PoolHealth};

/// How often it is looked whether a drive that is gone is there again.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// What is behind the path of a drive that was gone.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// The pool.
    Pool,
    /// Another one.
    Other(Uuid),
    /// Nothing that could be read, or no pool.
    Nothing,
}

/// Waits until the pool does not work any more; for ever if that never happens.
pub(super) async fn pool_failed(mut health: watch::Receiver<PoolHealth>) {
    let failed = health.wait_for(|health| *health != PoolHealth::Active);
    if failed.await.is_err() {
        // It is being closed.
        future::pending().await
    }
}

/// Waits until the pool's drive is there again after it was gone; for ever if that never happens.
pub(super) async fn drive_back(facts: &PoolFacts) {
    let mut health = facts.health.clone();
    let is_away = |health: &PoolHealth| match health {
        PoolHealth::DriveGone | PoolHealth::DriveBack => true,
        PoolHealth::Active | PoolHealth::JournalFailed => false,
    };
    if health.wait_for(is_away).await.is_err() {
        return future::pending().await;
    }
    let told = async {
        let back = health.wait_for(|health| *health == PoolHealth::DriveBack);
        if back.await.is_err() {
            future::pending().await
        }
    };
    // What the kernel took away it gives back as another device, which a path may lead to.
    tokio::select! {
        () = told => {}
        () = found_again(facts.path.clone(), facts.uuid) => {}
    }
}

async fn found_again(path: Option<PathBuf>, uuid: Uuid) {
    let Some(path) = path else {
        return future::pending().await;
    };
    let mut last = Seen::Nothing;
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let place = path.clone();
        // Only one at a time, should it hang.
        let looked = tokio::task::spawn_blocking(move || look(&place, uuid)).await;
        let seen = looked.ok().and_then(Result::ok).unwrap_or(Seen::Nothing);
        match seen {
            Seen::Pool => {
                tracing::warn!(path = %path.display(), pool = %uuid, "the pool's drive is there again");
                return;
            }
            Seen::Other(other) if seen != last => tracing::error!(
                path = %path.display(), pool = %uuid, %other,
                "where the pool's drive was there is another pool, which is not served"
            ),
            Seen::Other(_) | Seen::Nothing => {}
        }
        last = seen;
    }
}

/// Looks at what is behind a path now. Writes nothing.
fn look(path: &Path, uuid: Uuid) -> io::Result<Seen> {
    let kind = path.metadata()?.file_type();
    // Opening a pipe would wait for whoever writes to it.
    if !kind.is_file() && !kind.is_block_device() {
        return Ok(Seen::Nothing);
    }
    let file = File::open(path)?;
    let copies = SUPERBLOCK_OFFSETS.iter().filter_map(|offset| {
        let mut copy = [0; SUPERBLOCK_BYTES];
        file.read_exact_at(&mut copy, *offset).ok()?;
        Some(Superblock::decode(&copy).ok()?.uuid)
    });
    let found: Vec<Uuid> = copies.collect();
    Ok(match found.first() {
        None => Seen::Nothing,
        Some(_) if found.contains(&uuid) => Seen::Pool,
        Some(other) => Seen::Other(*other),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use bowline_block::{Device, MemDevice};
    use bowline_nvme::Nanos;
    use bowline_nvmf::target::AnaState;
    use bowline_pool::format::layout::LayoutOptions;
    use bowline_pool::{FormatOptions, Pool};

    use super::*;
    use crate::pool::VolumeDefaults;

    /// The start of a drive with a pool.
    fn start_of(uuid: Uuid) -> Vec<u8> {
        let mut drive = MemDevice::new(64 << 20, 4096).unwrap();
        let options = FormatOptions {
            uuid,
            label: String::new(),
            made: 0,
            layout: LayoutOptions::default(),
            is_forced: false,
        };
        Pool::format(&mut drive, &options, &mut || Nanos::ZERO).unwrap();
        let mut start = vec![0; 2 << 20];
        drive.read_now(0, &mut start).unwrap();
        start
    }

    #[test]
    fn only_the_same_pool_is_the_drive_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("drive");
        let (uuid, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        look(&path, uuid).unwrap_err();
        fs::write(&path, [0; 8192]).unwrap();
        assert_eq!(look(&path, uuid).unwrap(), Seen::Nothing);
        fs::write(&path, start_of(other)).unwrap();
        assert_eq!(look(&path, uuid).unwrap(), Seen::Other(other));
        let mut start = start_of(uuid);
        fs::write(&path, &start).unwrap();
        assert_eq!(look(&path, uuid).unwrap(), Seen::Pool);
        // One copy is enough, which is what there are two for.
        start[..4096].fill(0xff);
        fs::write(&path, &start).unwrap();
        assert_eq!(look(&path, uuid).unwrap(), Seen::Pool);
        assert_eq!(look(folder.path(), uuid).unwrap(), Seen::Nothing);
    }

    #[tokio::test]
    async fn a_pool_that_failed_ends_nothing_until_its_drive_is_back() {
        let (health, watched) = watch::channel(PoolHealth::Active);
        let facts = Arc::new(PoolFacts {
            uuid: Uuid::from_u128(1),
            device: "drive".to_owned(),
            path: None,
            reactor: 0,
            health: watched.clone(),
            defaults: VolumeDefaults {
                cntlids: None,
                controllers_max: None,
                ana: AnaState::Optimized,
                hosts: Vec::new(),
            },
        });
        let for_it = Arc::clone(&facts);
        let mut back = tokio::spawn(async move { drive_back(&for_it).await });
        for state in [PoolHealth::JournalFailed, PoolHealth::DriveGone] {
            health.send(state).unwrap();
            pool_failed(watched.clone()).await;
            tokio::task::yield_now().await;
            assert!(!back.is_finished(), "{state:?}");
        }
        health.send(PoolHealth::DriveBack).unwrap();
        (&mut back).await.unwrap();
    }
}
