//! The thread that writes, so that nobody who serves I/O or management waits for a disk.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bowline_api::{Failure, Reason};
use bowline_reactor::Mailbox;
use bowline_tcp::target::{ReservationStore, StoreReservations};
use tokio::sync::{mpsc, oneshot};

use super::folder::Folder;
use super::record::{Record, ReservationRecord, SubsystemRecord};
use crate::fleet::Message;

/// Writes that wait for their turn at most; a disk that is slower than that is no place for state.
const WAITING_MAX: usize = 256;

/// Where state is handed over to be written. Writes happen in the order they were handed over.
#[derive(Debug, Clone)]
pub(crate) struct Keeper {
    jobs: mpsc::Sender<Job>,
    identities: Identities,
}

/// UUIDs of the namespaces whose reservations are kept, by NQN and NSID. Reactors never lock it.
type Identities = Arc<Mutex<HashMap<(String, u32), [u8; 16]>>>;

/// One write, and who wants to know how it ended.
#[derive(Debug)]
enum Job {
    Subsystem(Box<SubsystemRecord>, oneshot::Sender<io::Result<()>>),
    Reservations(StoreReservations, Mailbox<Message>),
    /// Namespaces that were removed.
    Forget(String, Vec<u32>, oneshot::Sender<io::Result<()>>),
}

impl Keeper {
    /// Starts the thread. It ends, and lets the folder go, when the last keeper is dropped.
    pub(crate) fn start(folder: Folder) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel(WAITING_MAX);
        let identities = Identities::default();
        let worker = Worker {
            folder,
            identities: Arc::clone(&identities),
            told: None,
        };
        thread::Builder::new()
            .name("state".to_owned())
            .spawn(move || worker.work(queue))?;
        Ok(Self { jobs, identities })
    }

    /// Writes what is known of a subsystem; it is durable when this returns.
    pub(crate) async fn write_subsystem(&self, record: SubsystemRecord) -> Result<(), Failure> {
        self.done(|answer| Job::Subsystem(Box::new(record), answer))
            .await
    }

    /// Says which disk the reservations of a namespace are of from now on.
    pub(crate) fn identify(&self, nqn: &str, nsid: u32, uuid: [u8; 16]) {
        lock(&self.identities).insert((nqn.to_owned(), nsid), uuid);
    }

    /// A namespace that was to come did not.
    pub(crate) fn unidentify(&self, nqn: &str, nsid: u32) {
        lock(&self.identities).remove(&(nqn.to_owned(), nsid));
    }

    /// Forgets the reservations of namespaces that were removed. What is begun here comes before
    /// everything that is handed over later; how it ends need not be waited for.
    pub(crate) fn forget(&self, nqn: &str, nsids: Vec<u32>) -> Forgetting {
        for nsid in &nsids {
            self.unidentify(nqn, *nsid);
        }
        let (answer, answered) = oneshot::channel();
        let job = Job::Forget(nqn.to_owned(), nsids, answer);
        let begun = self.jobs.try_send(job).is_ok();
        Forgetting {
            nqn: nqn.to_owned(),
            answered: begun.then_some(answered),
        }
    }

    /// What a reactor hands its reservations to.
    pub(crate) fn for_reactor(&self, mailbox: Mailbox<Message>) -> ReactorStore {
        ReactorStore {
            jobs: self.jobs.clone(),
            mailbox,
        }
    }

    async fn done(
        &self,
        job: impl FnOnce(oneshot::Sender<io::Result<()>>) -> Job,
    ) -> Result<(), Failure> {
        let lost = || {
            Failure::new(Reason::Internal, "state not written")
                .cause("the thread that writes it has ended")
        };
        let (answer, answered) = oneshot::channel();
        self.jobs.send(job(answer)).await.map_err(|_| lost())?;
        let written = answered.await.map_err(|_| lost())?;
        written.map_err(|error| {
            Failure::new(Reason::StateUnusable, "state not written")
                .cause(error.to_string())
                .hint("look at the file system of the --state folder")
        })
    }
}

/// Reservations that are being forgotten.
#[derive(Debug)]
#[must_use]
pub(crate) struct Forgetting {
    nqn: String,
    /// `None`: the thread that writes has too much to do.
    answered: Option<oneshot::Receiver<io::Result<()>>>,
}

impl Forgetting {
    /// Waits until they are, on stable media.
    pub(crate) async fn done(self) {
        let outcome = match self.answered {
            Some(answered) => answered
                .await
                .unwrap_or_else(|_| Err(io::Error::other("the thread that writes has ended"))),
            None => Err(io::Error::other("the disk does not keep up")),
        };
        if let Err(error) = outcome {
            // A later namespace of another identity does not take them for its own.
            tracing::error!(subsystem_nqn = %self.nqn, %error, "reservations not forgotten");
        }
    }
}

/// A reactor's way to the thread that writes.
pub(crate) struct ReactorStore {
    jobs: mpsc::Sender<Job>,
    /// Where the answers go.
    mailbox: Mailbox<Message>,
}

impl ReservationStore for ReactorStore {
    fn try_begin(&mut self, request: StoreReservations) -> bool {
        let job = Job::Reservations(request, self.mailbox.clone());
        self.jobs.try_send(job).is_ok()
    }
}

struct Worker {
    folder: Folder,
    identities: Identities,
    /// When the log last heard of a failure: hosts can cause many.
    told: Option<Instant>,
}

/// How often a failure is told at most.
const TOLD_INTERVAL: Duration = Duration::from_secs(1);

impl Worker {
    fn work(mut self, mut queue: mpsc::Receiver<Job>) {
        while let Some(job) = queue.blocking_recv() {
            // Whoever does not wait any more has nothing to do about it.
            match job {
                Job::Subsystem(record, answer) => {
                    let written = self.folder.write(&Record::Subsystem(*record));
                    let _unheard = answer.send(written);
                }
                Job::Reservations(request, mailbox) => {
                    let id = request.id;
                    let durable = self.store(request);
                    let told = Message::work(move |served, _, now| {
                        served.service.reservations_stored(now, id, durable);
                    });
                    let _unheard = mailbox.send_blocking(told);
                }
                Job::Forget(nqn, nsids, answer) => {
                    let _unheard = answer.send(self.folder.forget_reservations(&nqn, &nsids));
                }
            }
        }
    }

    /// Whether the reservations are durable.
    fn store(&mut self, request: StoreReservations) -> bool {
        let StoreReservations {
            nqn, nsid, state, ..
        } = request;
        let nsid = nsid.0;
        let uuid = lock(&self.identities).get(&(nqn.clone(), nsid)).copied();
        let written = match (uuid, state) {
            (Some(uuid), Some(state)) => {
                self.folder.write(&Record::Reservations(ReservationRecord {
                    nqn: nqn.clone(),
                    nsid,
                    uuid,
                    image: state.encode(),
                }))
            }
            (_, None) => self.folder.remove_reservations(&nqn, nsid),
            // Removed meanwhile: the command that asked has failed already.
            (None, Some(_)) => return false,
        };
        if let Err(error) = &written
            && self.told.is_none_or(|at| at.elapsed() >= TOLD_INTERVAL)
        {
            self.told = Some(Instant::now());
            tracing::error!(
                subsystem_nqn = %nqn, nsid, %error, "reservations not stored: their command fails"
            );
        }
        written.is_ok()
    }
}

/// Nothing is done under the lock that could leave half of something.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NQN: &str = "nqn.2026-11.io.bowline:test:a";

    #[tokio::test]
    async fn namespace_comes_again_while_a_slow_disk_forgets_the_old_one() {
        let place = tempfile::tempdir().unwrap();
        let (folder, _) = Folder::open(place.path()).unwrap();
        folder
            .write(&Record::Reservations(ReservationRecord {
                nqn: NQN.to_owned(),
                nsid: 1,
                uuid: [1; 16],
                image: Vec::new(),
            }))
            .unwrap();
        let (jobs, queue) = mpsc::channel(WAITING_MAX);
        let identities = Identities::default();
        let keeper = Keeper {
            jobs,
            identities: Arc::clone(&identities),
        };
        keeper.identify(NQN, 1, [1; 16]);
        let forgetting = keeper.forget(NQN, vec![1]);
        keeper.identify(NQN, 1, [1; 16]);
        drop(keeper);
        let worker = Worker {
            folder,
            identities: Arc::clone(&identities),
            told: None,
        };
        thread::spawn(move || worker.work(queue)).join().unwrap();
        forgetting.done().await;
        assert!(lock(&identities).contains_key(&(NQN.to_owned(), 1)));
        let (_, loaded) = Folder::open(place.path()).unwrap();
        assert!(loaded.reservations.is_empty());
    }
}
