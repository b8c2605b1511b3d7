//! Many connections: what the process takes of memory, and that all of them work.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bowline_nvme::fabrics::{Connect, ConnectData, PropertySet, offset};
use bowline_nvme::nqn::Nqn;
use bowline_nvme::pdu::{CapsuleCmd, CapsuleResp, Digests, IcReq};
use bowline_nvme::{CommandId, ControllerId, NamespaceId, QueueId, Sgl, Sqe};

use crate::harness::DataPlane;
use crate::host::HOST;

const NQN: &str = "nqn.2026-11.io.bowline:test:scale";

/// EN, with 64-byte and 16-byte queue entries. [BASE-2.0 §3.1.3.5]
const CC_ENABLE: u32 = 0x0046_0001;

/// Resident memory of the process in bytes.
fn resident_bytes(plane: &DataPlane) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", plane.ready.pid)).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

fn start() -> DataPlane {
    DataPlane::start(&["--memory", "16MiB", "--nqn", NQN, "--host", HOST])
}

/// A queue as a host sets it up, and nothing on it.
struct Queue(TcpStream);

impl Queue {
    fn connect(plane: &DataPlane, qid: u16, cntlid: ControllerId) -> (Self, ControllerId) {
        let stream = TcpStream::connect(plane.ready.listen[0]).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        let mut queue = Self(stream);
        queue.0.write_all(&IcReq::default().encode()).unwrap();
        queue.0.read_exact(&mut [0; 128]).unwrap();
        let connect = Connect {
            qid: QueueId(qid),
            sqsize: if qid == 0 { 31 } else { 127 },
            ..Connect::default()
        };
        let data = ConnectData {
            hostid: [7; 16],
            cntlid,
            subnqn: Nqn::new(NQN).unwrap(),
            hostnqn: Nqn::new(HOST).unwrap(),
        };
        let sgl = Sgl::in_capsule(1024);
        let result = queue.command(connect.encode().with_sgl1(sgl), &data.encode());
        let [low, high, ..] = result.to_le_bytes();
        (queue, ControllerId(u16::from_le_bytes([low, high])))
    }

    /// An admin queue of an enabled controller.
    fn admin(plane: &DataPlane) -> (Self, ControllerId) {
        let (mut queue, cntlid) = Self::connect(plane, 0, ControllerId::DYNAMIC);
        let enable = PropertySet::dword(offset::CC, CC_ENABLE).encode();
        queue.command(enable.with_sgl1(Sgl::transport(0)), &[]);
        (queue, cntlid)
    }

    fn command(&mut self, sqe: Sqe, data: &[u8]) -> u64 {
        let sqe = sqe.with_cid(CommandId(1));
        let len = u32::try_from(data.len()).unwrap();
        let mut bytes = CapsuleCmd { sqe }.encode(Digests::NONE, 0, len).to_vec();
        bytes.extend_from_slice(data);
        self.0.write_all(&bytes).unwrap();
        let mut answer = [0; 24];
        self.0.read_exact(&mut answer).unwrap();
        let cqe = CapsuleResp::decode(&answer, Digests::NONE).unwrap().cqe;
        assert!(cqe.status.is_success(), "{}", cqe.status);
        cqe.result
    }
}

/// 1,000 connections of which none has anything to do.
#[test]
fn thousand_idle_connections_take_at_most_256_mib() {
    let plane = start();
    let before = resident_bytes(&plane);
    let began = Instant::now();
    let mut queues = Vec::new();
    for _ in 0..20 {
        let (admin, cntlid) = Queue::admin(&plane);
        queues.push(admin);
        queues.extend((1..50).map(|qid| Queue::connect(&plane, qid, cntlid).0));
    }
    let took = began.elapsed();
    let after = resident_bytes(&plane);
    println!(
        "{} connections in {took:?}; resident {} KiB before, {} KiB after",
        queues.len(),
        before >> 10,
        after >> 10
    );
    assert_eq!(queues.len(), 1000);
    assert!(after <= 256 << 20, "{after} bytes resident");
    // Each of them is alive.
    for queue in queues.iter_mut().skip(1).step_by(50) {
        queue.command(
            Sqe::new(0)
                .with_nsid(NamespaceId(1))
                .with_sgl1(Sgl::transport(0)),
            &[],
        );
    }
}
