//! Hosts that reserve, and what the rest of these tests need of them.

use bowline_nvme::fabrics::ConnectData;
use bowline_nvme::identify::{IdentifyController, IdentifyNamespace, IndependentNamespace, cns};
use bowline_nvme::opcode::io as opcode;
use bowline_nvme::pdu::Digests;
use bowline_nvme::reservation::{
    Acquire, Register, RegisteredControllerExtended, Release, Report, ReservationStatusExtended,
    ReservationType, rescap,
};
use bowline_nvme::{NamespaceId, Sgl, Status};
use bowline_nvmf::target::{ConnId, Hosts};

use crate::glue::{BLOCK, CC_ENABLE, Glue, SUBNQN, io};

pub(crate) const KEY_A: u64 = 0xA1;
pub(crate) const KEY_B: u64 = 0xB2;

/// A host's controller: its admin queue and one I/O queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Host {
    pub(crate) id: u8,
    pub(crate) admin: ConnId,
    pub(crate) queue: ConnId,
}

impl Glue {
    /// A new controller of host `id`, who may connect whatever it calls itself.
    pub(crate) fn host(&mut self, id: u8) -> Host {
        self.target
            .set_hosts(self.now, SUBNQN, Hosts::Any)
            .expect("known");
        let hostnqn = format!("nqn.2026-11.io.bowline:host-{id}");
        let data = |cntlid| ConnectData {
            hostid: [id; 16],
            ..Self::connect_data(SUBNQN, &hostnqn, cntlid)
        };
        let admin = self.initialized(Digests::NONE);
        let cqe = self.connect(admin, Self::connect_command(0, 31), &data(0xFFFF));
        assert_eq!(cqe.status, Status::SUCCESS);
        self.set_cc(admin, CC_ENABLE);
        let cntlid = u16::try_from(cqe.result & 0xFFFF).expect("16 bits");
        let queue = self.initialized(Digests::NONE);
        let cqe = self.connect(queue, Self::connect_command(1, 127), &data(cntlid));
        assert_eq!(cqe.status, Status::SUCCESS);
        Host { id, admin, queue }
    }

    pub(crate) fn register(&mut self, host: Host, register: Register) -> Status {
        let sqe = register.encode().with_nsid(NamespaceId(1));
        self.status_with_data(host.queue, sqe, &register.data())
    }

    pub(crate) fn acquire(&mut self, host: Host, acquire: Acquire) -> Status {
        let sqe = acquire.encode().with_nsid(NamespaceId(1));
        self.status_with_data(host.queue, sqe, &acquire.data())
    }

    pub(crate) fn release_reservation(&mut self, host: Host, release: Release) -> Status {
        let sqe = release.encode().with_nsid(NamespaceId(1));
        self.status_with_data(host.queue, sqe, &release.data())
    }

    /// Registers each of the hosts, A with `KEY_A` and others with `KEY_B`.
    pub(crate) fn register_all(&mut self, hosts: &[Host]) {
        for &host in hosts {
            assert_eq!(self.register(host, key(host)), Status::SUCCESS);
        }
    }

    pub(crate) fn report(
        &mut self,
        host: Host,
    ) -> (ReservationStatusExtended, Vec<RegisteredControllerExtended>) {
        let report = Report::extended(4096).encode().with_nsid(NamespaceId(1));
        let data = self.read_data(host.queue, report, 4096).expect("valid");
        let head = ReservationStatusExtended::decode(data.first_chunk().expect("64"));
        let (entries, _) = data[64..].as_chunks();
        let entries = entries.iter().map(RegisteredControllerExtended::decode);
        (head, entries.take(usize::from(head.regctl)).collect())
    }
}

/// The registration that a host makes in these tests.
pub(crate) fn key(host: Host) -> Register {
    Register {
        new_key: if host.id == 1 { KEY_A } else { KEY_B },
        ..Register::default()
    }
}

pub(crate) fn acquire(rtype: ReservationType, current_key: u64) -> Acquire {
    Acquire {
        rtype: rtype.wire(),
        current_key,
        ..Acquire::default()
    }
}

#[test]
fn identify_says_what_reservations_there_are() {
    let mut glue = Glue::new();
    let a = glue.host(1);
    let page = glue.identify(a.admin, cns::CONTROLLER, 0).expect("there");
    let controller = IdentifyController::decode(&page);
    assert_ne!(controller.oncs & IdentifyController::ONCS_RESERVATIONS, 0);
    assert_ne!(
        controller.ctratt & IdentifyController::CTRATT_HOST_ID_128,
        0
    );
    let expected = rescap::ALL_TYPES | rescap::IGNORE_KEY_1_3;
    let page = glue.identify(a.admin, cns::NAMESPACE, 1).expect("there");
    assert_eq!(IdentifyNamespace::decode(&page).rescap, expected);
    let page = glue
        .identify(a.admin, cns::INDEPENDENT_NAMESPACE, 1)
        .expect("there");
    assert_eq!(IndependentNamespace::decode(&page).rescap, expected);
}

/// All of them would have been one registrant, so that fencing one could fence none.
#[test]
fn hosts_without_an_identifier_cannot_reserve_and_are_shut_out_like_strangers() {
    let mut glue = Glue::new();
    let (nobody, a) = (glue.host(0), glue.host(1));
    let refused = glue.register(nobody, key(nobody));
    assert!(refused.same_code(Status::COMMAND_SEQUENCE_ERROR) && refused.is_dnr());
    glue.register_all(&[a]);
    let exclusive = acquire(ReservationType::WriteExclusive, KEY_A);
    assert_eq!(glue.acquire(a, exclusive), Status::SUCCESS);
    let block = [1; BLOCK as usize];
    let refused = glue.status_with_data(nobody.queue, io(opcode::WRITE, 0, 1), &block);
    assert!(refused.same_code(Status::RESERVATION_CONFLICT));
    assert_eq!(glue.report(nobody).0.regctl, 1);
}

#[test]
fn report_shows_registrants_holder_type_and_generation() {
    let mut glue = Glue::new();
    let (a, b) = (glue.host(1), glue.host(2));
    let (head, entries) = glue.report(a);
    assert_eq!((head.generation, head.rtype, head.regctl), (0, 0, 0));
    assert!(entries.is_empty());
    glue.register_all(&[b, a]);
    let exclusive = acquire(ReservationType::ExclusiveAccess, KEY_B);
    assert_eq!(glue.acquire(b, exclusive), Status::SUCCESS);
    // Also to one that is shut out.
    let (head, entries) = glue.report(a);
    assert_eq!((head.generation, head.rtype, head.regctl), (2, 2, 2));
    assert_eq!(head.ptpls, 0);
    let shown = |it: &RegisteredControllerExtended| (it.cntlid.0, it.hostid[0], it.rkey, it.rcsts);
    let shown: Vec<_> = entries.iter().map(shown).collect();
    assert_eq!(shown, [(0xFFFF, 1, KEY_A, 0), (0xFFFF, 2, KEY_B, 1)]);
}

#[test]
fn cut_report_counts_all_registrants_and_the_short_form_is_refused() {
    let mut glue = Glue::new();
    let hosts: Vec<Host> = (1..=20).map(|id| glue.host(id)).collect();
    glue.register_all(&hosts);
    for len in [4, 8, 64, 100, 128] {
        let report = Report::extended(len).encode().with_nsid(NamespaceId(1));
        let data = glue
            .read_data(hosts[0].queue, report, len)
            .expect("as much as there is room for");
        if len >= 8 {
            assert_eq!(data[5], 20, "beyond 16, and all of them");
        }
    }
    let (head, entries) = glue.report(hosts[3]);
    assert_eq!((head.regctl, entries.len()), (20, 20));
    let short = Report {
        numd: 1023,
        extended: false,
    };
    let short = short.encode().with_nsid(NamespaceId(1));
    let refused = glue.read_data(hosts[0].queue, short, 4096);
    assert_eq!(
        refused.map_err(|status| status.sc()),
        Err(Status::HOST_ID_INCONSISTENT.sc())
    );
    let report = Report::extended(4096).encode().with_nsid(NamespaceId(1));
    let refused = glue.read_data(hosts[0].queue, report, 64);
    assert!(refused.is_err_and(|it| it.same_code(Status::DATA_SGL_LENGTH_INVALID)));
}

#[test]
fn registration_belongs_to_the_host_and_outlives_its_connections() {
    let mut glue = Glue::new();
    let a = glue.host(1);
    let other = glue.host(1);
    glue.register_all(&[a]);
    let exclusive = acquire(ReservationType::WriteExclusive, KEY_A);
    assert_eq!(glue.acquire(other, exclusive), Status::SUCCESS);
    for queue in [a.queue, a.admin, other.queue, other.admin] {
        glue.drop_socket(queue);
    }
    let b = glue.host(2);
    let (head, entries) = glue.report(b);
    assert_eq!((head.rtype, entries.len()), (1, 1));
    let back = glue.host(1);
    let release = Release {
        rtype: 1,
        current_key: KEY_A,
        ..Release::default()
    };
    assert_eq!(glue.release_reservation(back, release), Status::SUCCESS);
    assert_eq!(glue.report(back).0.rtype, 0);
}

#[test]
fn removed_namespace_takes_its_reservations_with_it() {
    let mut glue = Glue::new();
    let a = glue.host(1);
    glue.register_all(&[a]);
    glue.target
        .remove_namespace(glue.now, SUBNQN, 1)
        .expect("there");
    assert!(
        glue.register(a, key(a))
            .same_code(Status::INVALID_NAMESPACE)
    );
    let mut next = crate::glue::namespace(2);
    next.nsid = Some(1);
    glue.target
        .add_namespace(glue.now, SUBNQN, next)
        .expect("valid");
    assert_eq!(glue.report(a).0.regctl, 0);
}

#[test]
fn keys_come_by_transfer_too_and_too_few_are_refused() {
    let mut glue = Glue::new();
    let a = glue.host(1);
    let register = key(a);
    let sqe = register.encode().with_nsid(NamespaceId(1));
    let cqe = glue.write_by_r2t(a.queue, sqe, &register.data());
    assert_eq!(cqe.status, Status::SUCCESS);
    assert_eq!(glue.report(a).0.regctl, 1);
    for sqe in [sqe, Acquire::default().encode().with_nsid(NamespaceId(1))] {
        let refused = glue.status_with_data(a.queue, sqe, &[0; 12]);
        assert!(refused.same_code(Status::DATA_SGL_LENGTH_INVALID));
    }
    let sqe = Release::default().encode().with_nsid(NamespaceId(1));
    let refused = glue.status_with_data(a.queue, sqe, &[0; 4]);
    assert!(refused.same_code(Status::DATA_SGL_LENGTH_INVALID));
    // Linux sends 16 bytes where 8 are needed.
    let release = Release {
        current_key: KEY_A,
        ..Release::default()
    };
    let data = [release.data(), [0; 8]].concat();
    assert_eq!(glue.status_with_data(a.queue, sqe, &data), Status::SUCCESS);
    for nsid in [0, 9, NamespaceId::BROADCAST.0] {
        let sqe = sqe
            .with_nsid(NamespaceId(nsid))
            .with_sgl1(Sgl::in_capsule(16));
        let refused = glue.status_with_data(a.queue, sqe, &data);
        assert!(refused.same_code(Status::INVALID_NAMESPACE));
    }
}
