//! A scripted controller: answers what a host sends, well or badly, in virtual time.

use std::collections::HashMap;

use bowline_nvme::event::AsyncEvent;
use bowline_nvme::fabrics::{Cap, Cc, ConnectResult, Csts, PropertyGet, PropertySet, offset};
use bowline_nvme::feature::AsyncEventConfig;
use bowline_nvme::identify::{
    Identify, IdentifyController, IdentifyNamespace, LbaFormat, NamespaceDescriptor, cns,
    encode_namespace_descriptors, encode_namespace_list,
};
use bowline_nvme::log::GetLogPage;
use bowline_nvme::opcode::{admin, fabrics, io};
use bowline_nvme::pdu::Direction;
use bowline_nvme::{CommandId, NamespaceId, Nanos, Sqe, Status};

use super::*;
use crate::frame::{Event, FrameReader, Header};
use crate::host::{ControllerConfig, HostController, HostEvent, HostState};

/// What the controller answers to one command.
#[derive(Debug, Clone)]
pub(super) enum Reply {
    Status(Status),
    Result(u64),
    Data(Vec<u8>),
    /// Nothing, for now or for ever.
    Never,
}

/// The controller's side: what it is, and what it was asked.
pub(super) struct Script {
    pub(super) cntlid: ControllerId,
    pub(super) cap: Cap,
    pub(super) cc: Cc,
    /// How often CSTS is read before it shows what CC asked for.
    pub(super) polls_until_change: u32,
    pub(super) fatal: bool,
    pub(super) identify: IdentifyController,
    pub(super) namespaces: Vec<(NamespaceId, IdentifyNamespace, [u8; 16])>,
    /// Queue pairs granted.
    pub(super) granted: u16,
    pub(super) connect: Option<Status>,
    pub(super) answers_keep_alive: bool,
    /// Overrides everything, if set.
    pub(super) custom: Option<fn(u16, &Sqe) -> Option<Reply>>,
    pub(super) waiting_events: Vec<CommandId>,
    /// Every admin command that was received.
    pub(super) seen: Vec<Sqe>,
    polls: u32,
}

impl Script {
    pub(super) fn new() -> Self {
        let cntlid = ControllerId(5);
        let identify = IdentifyController {
            cntlid,
            sn: *b"SERIAL              ",
            mdts: 5,
            oaes: AsyncEventConfig::NAMESPACE_ATTRIBUTE.0,
            cntrltype: IdentifyController::CNTRLTYPE_IO,
            kas: 10,
            maxcmd: 64,
            nn: 8,
            vwc: IdentifyController::VWC_PRESENT,
            sgls: IdentifyController::SGLS_SUPPORTED,
            ioccsz: 4 + 256,
            iorcsz: 1,
            ..IdentifyController::default()
        };
        let mut script = Self {
            cntlid,
            cap: Cap::default()
                .with_mqes(127)
                .with_to(1)
                .with_css(Cap::CSS_NVM),
            cc: Cc::default(),
            polls_until_change: 0,
            fatal: false,
            identify,
            namespaces: Vec::new(),
            granted: 64,
            connect: None,
            answers_keep_alive: true,
            custom: None,
            waiting_events: Vec::new(),
            seen: Vec::new(),
            polls: 0,
        };
        script.add_namespace(1, 1000);
        script
    }

    pub(super) fn add_namespace(&mut self, nsid: u32, blocks: u64) {
        let mut lbaf = [LbaFormat::default(); 16];
        lbaf[0] = LbaFormat {
            ms: 0,
            lbads: 12,
            rp: 0,
        };
        let identify = IdentifyNamespace {
            nsze: blocks,
            ncap: blocks,
            lbaf,
            ..IdentifyNamespace::default()
        };
        let uuid = [u8::try_from(nsid).expect("small"); 16];
        self.namespaces.push((NamespaceId(nsid), identify, uuid));
    }

    fn reply(&mut self, queue: u16, sqe: &Sqe) -> Reply {
        if queue == 0 {
            self.seen.push(*sqe);
        }
        if let Some(reply) = self.custom.and_then(|custom| custom(queue, sqe)) {
            return reply;
        }
        match (queue, sqe.opcode()) {
            (_, admin::FABRICS) => self.fabrics(sqe),
            (0, admin::IDENTIFY) => self.identify(sqe),
            (0, admin::GET_LOG_PAGE) => {
                let len = GetLogPage::decode(sqe).bytes();
                Reply::Data(vec![0; usize::try_from(len).expect("small")])
            }
            (0, admin::SET_FEATURES) if sqe.cdw(10) == 7 => {
                let granted = u64::from(self.granted - 1);
                Reply::Result(granted | granted << 16)
            }
            (0, admin::SET_FEATURES) => Reply::Result(0),
            (0, admin::ASYNC_EVENT_REQUEST) => {
                self.waiting_events.push(sqe.cid());
                Reply::Never
            }
            (0, admin::KEEP_ALIVE) if self.answers_keep_alive => Reply::Result(0),
            (1.., io::READ) => Reply::Data(vec![0xA5; sqe.sgl1().length as usize]),
            (1.., io::FLUSH) => Reply::Result(0),
            _ => Reply::Never,
        }
    }

    fn fabrics(&mut self, sqe: &Sqe) -> Reply {
        match sqe.fctype() {
            fabrics::CONNECT => match self.connect {
                Some(status) => Reply::Status(status),
                None => Reply::Result(
                    ConnectResult {
                        cntlid: self.cntlid,
                        authentication_required: false,
                        secure_channel_required: false,
                    }
                    .encode(),
                ),
            },
            fabrics::PROPERTY_SET => {
                self.cc = Cc(PropertySet::decode(sqe).value_dword());
                self.polls = 0;
                Reply::Result(0)
            }
            _ => Reply::Result(match PropertyGet::decode(sqe).offset {
                offset::CAP => self.cap.0,
                offset::VS => 0x2_0000,
                _ => self.csts(),
            }),
        }
    }

    fn csts(&mut self) -> u64 {
        self.polls += 1;
        let changed = self.polls > self.polls_until_change;
        let csts = Csts::default()
            .with_cfs(self.fatal && self.cc.en())
            .with_rdy(self.cc.en() == changed)
            .with_shst(if self.cc.shn() == 0 {
                0
            } else {
                1 + u8::from(changed)
            });
        csts.0.into()
    }

    fn identify(&self, sqe: &Sqe) -> Reply {
        let mut data = [0; 4096];
        let wanted = Identify::decode(sqe);
        let namespace = self
            .namespaces
            .iter()
            .find(|(nsid, ..)| *nsid == sqe.nsid());
        match (wanted.cns, namespace) {
            (cns::CONTROLLER, _) => self.identify.encode(&mut data),
            (cns::ACTIVE_NAMESPACE_LIST, _) => {
                let above = self.namespaces.iter().map(|(nsid, ..)| *nsid);
                encode_namespace_list(above.filter(|nsid| *nsid > sqe.nsid()), &mut data);
            }
            (cns::NAMESPACE, Some((_, identify, _))) => identify.encode(&mut data),
            (cns::NAMESPACE_DESCRIPTORS, Some((.., uuid))) => {
                encode_namespace_descriptors(&[NamespaceDescriptor::Uuid(*uuid)], &mut data);
            }
            _ => return Reply::Status(Status::INVALID_NAMESPACE.dnr()),
        }
        Reply::Data(data.to_vec())
    }
}

/// A host and a scripted controller with a wire between them.
pub(super) struct Rig {
    pub(super) host: HostController,
    pub(super) script: Script,
    pub(super) now: Nanos,
    /// Whether connections can be opened: refused, or never answered.
    pub(super) refuses: bool,
    pub(super) silent: bool,
    wires: HashMap<u16, FrameReader>,
    pub(super) opening: Vec<u16>,
    events: Vec<(Nanos, HostEvent)>,
}

impl Rig {
    pub(super) fn new(config: ControllerConfig) -> Self {
        Self {
            host: HostController::new(config),
            script: Script::new(),
            now: Nanos::from_secs(1000),
            refuses: false,
            silent: false,
            wires: HashMap::new(),
            opening: Vec::new(),
            events: Vec::new(),
        }
    }

    /// Connected, with the events of that taken.
    pub(super) fn connected(config: ControllerConfig) -> Self {
        let mut rig = Self::new(config);
        rig.host.connect(rig.now);
        rig.run_for(Nanos::from_millis(100));
        assert_eq!(rig.host.state(), HostState::Ready, "{:?}", rig.events);
        assert_eq!(rig.take_events(), [HostEvent::Connected]);
        rig
    }

    /// Runs for a span of virtual time.
    pub(super) fn run_for(&mut self, span: Nanos) {
        let until = self.now.after(span);
        loop {
            self.settle();
            match self.host.poll_timeout() {
                Some(at) if at <= until => {
                    self.now = self.now.max(at);
                    self.host.handle_timeout(self.now);
                }
                _ => break,
            }
        }
        self.now = until;
    }

    /// Exchanges bytes until nobody has any.
    pub(super) fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 100_000, "host and controller never come to rest");
            let mut worked = self.take_host_events();
            for queue in 0..16 {
                worked |= self.exchange(queue);
            }
            if !worked {
                return;
            }
        }
    }

    pub(super) fn take_events(&mut self) -> Vec<HostEvent> {
        self.settle();
        std::mem::take(&mut self.events)
            .into_iter()
            .map(|(_, event)| event)
            .collect()
    }

    pub(super) fn take_timed_events(&mut self) -> Vec<(Nanos, HostEvent)> {
        self.settle();
        std::mem::take(&mut self.events)
    }

    /// Cuts a connection.
    pub(super) fn cut(&mut self, queue: u16) {
        self.wires.remove(&queue);
        self.host.closed(self.now, queue);
        self.settle();
    }

    pub(super) fn submit(&mut self, queue: u16, sqe: Sqe, transfer: Transfer, token: u64) {
        let command = Command {
            sqe,
            transfer,
            token,
        };
        self.host
            .submit(self.now, queue, command)
            .expect("the queue takes a command");
    }

    pub(super) fn send_event(&mut self, event: AsyncEvent) {
        let cid = self
            .script
            .waiting_events
            .pop()
            .expect("the host asked for events");
        let bytes = response(
            cid,
            Status::SUCCESS,
            event.encode().into(),
            self.host.config().digests,
        );
        self.deliver(0, &bytes);
    }

    fn take_host_events(&mut self) -> bool {
        let mut worked = false;
        while let Some(event) = self.host.poll_event(self.now) {
            worked = true;
            match event {
                HostEvent::Open { queue } if self.silent => self.opening.push(queue),
                HostEvent::Open { queue } if self.refuses => self.host.closed(self.now, queue),
                HostEvent::Open { queue } => {
                    let reader = FrameReader::new(Direction::HostToController);
                    self.wires.insert(queue, reader);
                    self.host.opened(self.now, queue);
                }
                HostEvent::Close { queue } => {
                    self.wires.remove(&queue);
                    self.opening.retain(|opening| *opening != queue);
                }
                other => self.events.push((self.now, other)),
            }
        }
        worked
    }

    fn exchange(&mut self, queue: u16) -> bool {
        if !self.wires.contains_key(&queue) {
            return false;
        }
        let mut bytes = Vec::new();
        while let Some(output) = self.host.poll_output(queue) {
            output.pdu.encode_into(&mut bytes);
            let payload = match output.payload {
                TxPayload::None => continue,
                TxPayload::Slot { len, .. } => vec![0; len as usize],
                TxPayload::Control { offset, len } => {
                    self.host.control(queue)[offset as usize..(offset + len) as usize].to_vec()
                }
            };
            bytes.extend_from_slice(&payload);
            if output.pdu.data_digest() {
                bytes.extend_from_slice(&crc32c(&payload).to_le_bytes());
            }
        }
        let worked = !bytes.is_empty();
        let mut rest = bytes.as_slice();
        while let Some(reader) = self.wires.get_mut(&queue) {
            let due = reader.payload_remaining() as usize;
            if due > 0 {
                let crc = crc32c(&rest[..due]);
                reader.advance_payload(u32::try_from(due).expect("fits"), Some(crc));
                rest = &rest[due..];
            }
            let taken = reader.handle(rest);
            rest = &rest[taken..];
            match reader.poll_event() {
                Some(Event::Header(header)) => self.answer(queue, &header),
                Some(Event::DigestOk | Event::PayloadEnd) => {}
                Some(event) => panic!("the host sent {event:?}"),
                None if taken == 0 && due == 0 => break,
                None => {}
            }
        }
        worked
    }

    fn answer(&mut self, queue: u16, header: &Header) {
        let digests = self.host.config().digests;
        let sqe = match header {
            Header::IcReq(request) => {
                if let Some(reader) = self.wires.get_mut(&queue) {
                    reader.set_digests(request.digests());
                }
                return self.deliver(queue, &ic_resp(request.digests()).encode());
            }
            Header::CapsuleCmd(capsule) => capsule.sqe,
            _ => return,
        };
        let cid = sqe.cid();
        let bytes = match self.script.reply(queue, &sqe) {
            Reply::Status(status) => response(cid, status, 0, digests),
            Reply::Result(result) => response(cid, Status::SUCCESS, result, digests),
            Reply::Never => return,
            Reply::Data(data) => {
                let datal = u32::try_from(data.len()).expect("fits");
                let success = queue > 0;
                let pdu = C2HData {
                    cccid: cid,
                    datao: 0,
                    datal,
                    last: true,
                    success,
                };
                let mut bytes = c2h_data(pdu, &data, digests);
                if !success {
                    bytes.extend(response(cid, Status::SUCCESS, 0, digests));
                }
                bytes
            }
        };
        self.deliver(queue, &bytes);
    }

    /// Bytes from the controller to the host; user data is thrown away after its CRC.
    pub(super) fn deliver(&mut self, queue: u16, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let taken = match self.host.rx(queue) {
                Rx::Closed => return,
                Rx::Bytes => self.host.handle_bytes(self.now, queue, rest),
                Rx::Payload {
                    len, digest_from, ..
                } => {
                    let landed = rest.len().min(len as usize);
                    let crc = digest_from.map(|_| crc32c(&rest[..landed]));
                    let count = u32::try_from(landed).expect("within len");
                    self.host.handle_payload(self.now, queue, count, crc);
                    landed
                }
            };
            rest = &rest[taken..];
        }
    }
}
