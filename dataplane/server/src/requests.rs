//! Remembers the answers to mutations that carried a request_id, so that a caller
//! who lost the answer may ask again without a second effect.

use std::collections::{HashMap, VecDeque};

use bowline_api::{Failure, Reason};
use prost::Message;
use tokio::sync::watch;
use uuid::Uuid;

/// Answers remembered; the oldest is forgotten first.
const REMEMBERED_MAX: usize = 1024;

/// The memory: bounded, and lost with the process as the resources are.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    answers: HashMap<Uuid, Answer>,
    order: VecDeque<Uuid>,
    /// Requests under way that do not hold the lock; each ends when its sender is dropped.
    running: Vec<Running>,
}

#[derive(Debug)]
struct Running {
    ticket: Ticket,
    ended: watch::Receiver<()>,
}

#[derive(Debug)]
struct Answer {
    /// Method and content of the request, to notice a reused identifier.
    fingerprint: Uuid,
    response: Vec<u8>,
}

/// A mutation that has an identifier and is not answered yet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ticket {
    id: Uuid,
    fingerprint: Uuid,
}

impl Running {
    fn is_alive(&self) -> bool {
        self.ended.has_changed().is_ok()
    }
}

impl Ticket {
    /// `None` if the request has no identifier.
    fn new(
        method: &str,
        request_id: &str,
        request: &impl Message,
    ) -> Result<Option<Self>, Failure> {
        if request_id.is_empty() {
            return Ok(None);
        }
        let id = Uuid::parse_str(request_id).map_err(|_| {
            let message = format!("request_id {request_id:?} is not a UUID");
            Failure::invalid_field("request_id", message)
        })?;
        let mut content = method.as_bytes().to_vec();
        content.push(0);
        content.extend(request.encode_to_vec());
        let fingerprint = Uuid::new_v5(&Uuid::NAMESPACE_OID, &content);
        Ok(Some(Self { id, fingerprint }))
    }

    fn reused(&self) -> Failure {
        let message = format!("request_id {} was used for another request", self.id);
        Failure::new(Reason::RequestIdReused, message)
            .with("field", "request_id")
            .hint("make a new UUID for every new request")
    }
}

/// What the memory says about a request.
#[derive(Debug)]
pub(crate) enum Seen<R> {
    /// Not seen: do it, then [`Requests::remember`] with the ticket if there is one.
    New(Option<Ticket>),
    /// Done already; the answer given then.
    Done(R),
}

impl Requests {
    /// `request` is the whole message, its request_id included.
    pub(crate) fn look_up<R: Message + Default>(
        &self,
        method: &str,
        request_id: &str,
        request: &impl Message,
    ) -> Result<Seen<R>, Failure> {
        let Some(ticket) = Ticket::new(method, request_id, request)? else {
            return Ok(Seen::New(None));
        };
        if self.find_running(&ticket)?.is_some() {
            // Only a caller that asks again between two of our steps comes here.
            let message = format!("request_id {request_id} is under way");
            return Err(Failure::new(Reason::BackingBusy, message).hint("ask again"));
        }
        let Some(answer) = self.answers.get(&ticket.id) else {
            return Ok(Seen::New(Some(ticket)));
        };
        if answer.fingerprint != ticket.fingerprint {
            return Err(ticket.reused());
        }
        R::decode(answer.response.as_slice())
            .map(Seen::Done)
            .map_err(|_| Failure::new(Reason::Internal, "the remembered answer cannot be read"))
    }

    /// If the same request is under way: what changes no more, and is gone when it has ended.
    pub(crate) fn running(
        &self,
        method: &str,
        request_id: &str,
        request: &impl Message,
    ) -> Result<Option<watch::Receiver<()>>, Failure> {
        match Ticket::new(method, request_id, request)? {
            None => Ok(None),
            Some(ticket) => Ok(self.find_running(&ticket)?.map(|it| it.ended.clone())),
        }
    }

    /// Says that a request is under way, until what this gives is dropped.
    pub(crate) fn begin(&mut self, ticket: Option<Ticket>) -> Option<watch::Sender<()>> {
        let ticket = ticket?;
        let (sender, ended) = watch::channel(());
        self.running.retain(Running::is_alive);
        self.running.push(Running { ticket, ended });
        Some(sender)
    }

    fn find_running(&self, ticket: &Ticket) -> Result<Option<&Running>, Failure> {
        let mut alive = self.running.iter().filter(|it| it.is_alive());
        match alive.find(|it| it.ticket.id == ticket.id) {
            Some(found) if found.ticket.fingerprint != ticket.fingerprint => Err(ticket.reused()),
            found => Ok(found),
        }
    }

    /// Keeps a successful answer. Failures are not kept: they may be tried again.
    pub(crate) fn remember(&mut self, ticket: Option<Ticket>, response: &impl Message) {
        let Some(Ticket { id, fingerprint }) = ticket else {
            return;
        };
        if self.order.len() == REMEMBERED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.answers.remove(&oldest);
        }
        let answer = Answer {
            fingerprint,
            response: response.encode_to_vec(),
        };
        if self.answers.insert(id, answer).is_none() {
            self.order.push_back(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use bowline_api::dataplane::v1::{DeleteSubsystemRequest, Subsystem};

    use super::*;

    fn request(name: &str) -> DeleteSubsystemRequest {
        DeleteSubsystemRequest {
            name: name.to_owned(),
            request_id: String::new(),
        }
    }

    fn ask(requests: &Requests, id: &str, name: &str) -> Result<Seen<Subsystem>, Failure> {
        requests.look_up("M", id, &request(name))
    }

    fn remember(requests: &mut Requests, id: &str, name: &str) {
        let Ok(Seen::New(ticket)) = ask(requests, id, name) else {
            panic!("not new")
        };
        let answer = Subsystem {
            nqn: name.to_owned(),
            ..Default::default()
        };
        requests.remember(ticket, &answer);
    }

    #[test]
    fn repeated_request_gets_the_first_answer() {
        let mut requests = Requests::default();
        let id = Uuid::new_v4().to_string();
        remember(&mut requests, &id, "x");
        let Ok(Seen::Done(answer)) = ask(&requests, &id, "x") else {
            panic!("forgotten")
        };
        assert_eq!(answer.nqn, "x");
    }

    #[test]
    fn identifier_with_another_request_is_refused() {
        let mut requests = Requests::default();
        let id = Uuid::new_v4().to_string();
        remember(&mut requests, &id, "x");
        assert_eq!(
            ask(&requests, &id, "y").unwrap_err().reason,
            Reason::RequestIdReused
        );
    }

    #[test]
    fn request_under_way_is_waited_for_until_it_ends() {
        let mut requests = Requests::default();
        let id = Uuid::new_v4().to_string();
        let Ok(Seen::New(ticket)) = ask(&requests, &id, "x") else {
            panic!("not new")
        };
        let running = requests.begin(ticket).unwrap();
        let seen = |requests: &Requests, name| requests.running("M", &id, &request(name));
        assert!(seen(&requests, "x").unwrap().is_some());
        assert_eq!(
            seen(&requests, "y").unwrap_err().reason,
            Reason::RequestIdReused
        );
        assert_eq!(
            ask(&requests, &id, "x").unwrap_err().reason,
            Reason::BackingBusy
        );
        drop(running);
        assert!(seen(&requests, "x").unwrap().is_none());
        // It failed, so it may be tried again.
        assert!(matches!(ask(&requests, &id, "x"), Ok(Seen::New(Some(_)))));
        let _other = requests.begin(ticket);
        assert_eq!(requests.running.len(), 1);
    }

    #[test]
    fn identifier_must_be_a_uuid_or_absent() {
        let requests = Requests::default();
        assert!(matches!(ask(&requests, "", "x"), Ok(Seen::New(None))));
        assert_eq!(
            ask(&requests, "7", "x").unwrap_err().reason,
            Reason::InvalidField
        );
    }

    #[test]
    fn memory_is_bounded_and_forgets_the_oldest() {
        let mut requests = Requests::default();
        let first = Uuid::new_v4().to_string();
        remember(&mut requests, &first, "x");
        for _ in 0..REMEMBERED_MAX {
            remember(&mut requests, &Uuid::new_v4().to_string(), "x");
        }
        assert_eq!(requests.answers.len(), REMEMBERED_MAX);
        assert_eq!(requests.order.len(), REMEMBERED_MAX);
        assert!(matches!(
            ask(&requests, &first, "x"),
            Ok(Seen::New(Some(_)))
        ));
    }
}
