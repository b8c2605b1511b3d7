//! The thread that writes, so that nobody who serves I/O or management waits for a disk.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use bowline_api::{Failure, Reason};
use bowline_reactor::Mailbox;
use bowline_tcp::target::{ReservationStore, StoreReservations, TargetMessage};
use tokio::sync::{mpsc, oneshot};

use super::folder::Folder;
use super::record::{Record, ReservationRecord, SubsystemRecord};
use crate::backing::Backing;
use crate::fleet::Service;

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
    Reservations(StoreReservations, Mailbox<TargetMessage<Backing>>),
    /// A namespace that was removed, and what its reservations were.
    Forget(String, u32, oneshot::Sender<io::Result<()>>),
}

impl Keeper {
    /// Starts the thread. It ends, and lets the folder go, when the last keeper is dropped.
    pub(crate) fn start(folder: Folder) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel(WAITING_MAX);
        let identities = Identities::default();
        let worker = Worker {
            folder,
            identities: Arc::clone(&identities),
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

    /// Forgets the reservations of a namespace that was removed.
    pub(crate) async fn forget(&self, nqn: &str, nsid: u32) -> Result<(), Failure> {
        let nqn = nqn.to_owned();
        self.done(|answer| Job::Forget(nqn, nsid, answer)).await
    }

    /// What a reactor hands its reservations to.
    pub(crate) fn for_reactor(&self, mailbox: Mailbox<TargetMessage<Backing>>) -> ReactorStore {
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

/// A reactor's way to the thread that writes.
pub(crate) struct ReactorStore {
    jobs: mpsc::Sender<Job>,
    /// Where the answers go.
    mailbox: Mailbox<TargetMessage<Backing>>,
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
}

impl Worker {
    fn work(self, mut queue: mpsc::Receiver<Job>) {
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
                    let call = move |service: &mut Service, _: &mut _, now| {
                        service.reservations_stored(now, id, durable);
                    };
                    let _unheard = mailbox.send_blocking(TargetMessage::Call(Box::new(call)));
                }
                Job::Forget(nqn, nsid, answer) => {
                    let removed = self.folder.remove_reservations(&nqn, nsid);
                    lock(&self.identities).remove(&(nqn, nsid));
                    let _unheard = answer.send(removed);
                }
            }
        }
    }

    /// Whether the reservations are durable.
    fn store(&self, request: StoreReservations) -> bool {
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
        if let Err(error) = &written {
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
