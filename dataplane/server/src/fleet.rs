//! The reactors: how they are started, asked, and watched.

use std::io;
use std::sync::Arc;

use bowline_api::{Failure, Reason};
use bowline_nvme::Nanos;
use bowline_nvmf::target::TargetConfig;
use bowline_reactor::{BackendInfo, Config as ReactorConfig, Mailbox, Reactor, SharedCounters};
use bowline_tcp::target::{TargetMessage, TargetService};
use tokio::sync::{mpsc, oneshot};

use crate::backing::Backing;
use crate::config::Config;
use crate::error::StartError;

/// What runs on every reactor.
pub(crate) type Service = TargetService<Backing>;

/// One reactor, seen from the management thread.
pub(crate) struct Member {
    pub(crate) mailbox: Mailbox<TargetMessage<Backing>>,
    pub(crate) counters: Arc<SharedCounters>,
    pub(crate) info: BackendInfo,
    /// CPU it is pinned to.
    pub(crate) cpu: Option<usize>,
}

/// Every reactor of the process, in the order of `--cores`.
pub(crate) struct Fleet {
    pub(crate) members: Vec<Member>,
}

/// A reactor ended: its position, and whether its thread came to a regular end.
pub(crate) struct Ended {
    pub(crate) index: usize,
    pub(crate) regular: bool,
}

impl Fleet {
    /// Starts one reactor for each CPU, or a single one that is not pinned. The end of
    /// each is told to `ended`.
    pub(crate) fn start(
        config: &Config,
        target: &TargetConfig,
        ended: &mpsc::Sender<Ended>,
    ) -> Result<Self, StartError> {
        let cpus: Vec<Option<usize>> = match config.cores.as_slice() {
            [] => vec![None],
            cores => cores.iter().copied().map(Some).collect(),
        };
        let mut members = Vec::with_capacity(cpus.len());
        for (index, cpu) in cpus.into_iter().enumerate() {
            let member = Member::start(config, target.clone(), index, cpu, ended.clone())
                .map_err(|source| StartError::Reactor { index, source })?;
            members.push(member);
        }
        Ok(Self { members })
    }

    /// Lets every reactor drain, flush and end.
    pub(crate) async fn begin_stop(&self) {
        for index in 0..self.members.len() {
            let told = self
                .call(index, |service, cx, now| service.begin_stop(cx, now))
                .await;
            if let Err(failure) = told {
                tracing::warn!(reactor = index, cause = %failure.cause, "reactor not told to stop");
            }
        }
    }

    /// Runs a closure on a reactor and waits for what it returns.
    pub(crate) async fn call<R: Send + 'static>(
        &self,
        index: usize,
        job: impl FnOnce(&mut Service, &mut Reactor, Nanos) -> R + Send + 'static,
    ) -> Result<R, Failure> {
        let (answer, answered) = oneshot::channel();
        let message = TargetMessage::Call(Box::new(move |service: &mut Service, cx, now| {
            // Nobody waits any more when the caller hung up; the work is done all the same.
            let _unheard = answer.send(job(service, cx, now));
        }));
        let member = self.members.get(index).ok_or_else(|| lost(index))?;
        member.mailbox.try_send(message).map_err(|_| {
            Failure::new(
                Reason::LimitReached,
                format!("reactor {index} took no request"),
            )
            .cause("its mailbox is full, or it has ended")
            .hint("try again in a moment; if that does not help, see the log")
        })?;
        answered.await.map_err(|_| lost(index))
    }
}

impl Member {
    fn start(
        config: &Config,
        target: TargetConfig,
        index: usize,
        cpu: Option<usize>,
        ended: mpsc::Sender<Ended>,
    ) -> io::Result<Self> {
        let settings = ReactorConfig {
            io: config.io,
            poll: config.poll,
            core: cpu,
            name: format!("reactor-{index}"),
            ..ReactorConfig::default()
        };
        let handle =
            bowline_reactor::spawn(settings, move |_cx, _mailbox| Ok(Service::new(target)))?;
        let member = Self {
            mailbox: handle.mailbox.clone(),
            counters: Arc::clone(&handle.counters),
            info: handle.info.clone(),
            cpu,
        };
        std::thread::Builder::new()
            .name(format!("join-{index}"))
            .spawn(move || {
                let regular = handle.join().is_ok();
                // The management thread may be gone already when everything ends.
                let _unheard = ended.blocking_send(Ended { index, regular });
            })?;
        Ok(member)
    }
}

fn lost(index: usize) -> Failure {
    Failure::new(Reason::Stopping, format!("reactor {index} does not answer"))
        .cause("it has ended, or the data plane is stopping")
        .hint("see the log of the data plane")
}
