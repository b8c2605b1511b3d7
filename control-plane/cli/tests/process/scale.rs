//! Many connections, and many namespaces: what the process takes of memory, and that all of it works.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bowline_api::dataplane::v1 as api;
use bowline_api::dataplane::v1::data_plane_service_client::DataPlaneServiceClient;
use bowline_nvme::fabrics::{Connect, ConnectData, PropertySet, offset};
use bowline_nvme::nqn::Nqn;
use bowline_nvme::pdu::{CapsuleCmd, CapsuleResp, Digests, IcReq};
use bowline_nvme::{CommandId, ControllerId, NamespaceId, QueueId, Sgl, Sqe};

use crate::harness::DataPlane;
use crate::host::HOST;

const NQN: &str = "nqn.2026-11.io.bowline:test:scale";

/// EN, with 64-byte and 16-byte queue entries. [BASE-2.0 §3.1.3.5]
const CC_ENABLE: u32 = 0x0046_0001;

/// Namespaces of the subsystem.
const NAMESPACES: u32 = 10_000;

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

fn start(arguments: &[&str]) -> DataPlane {
    let usual = ["--memory", "16MiB", "--nqn", NQN, "--host", HOST];
    DataPlane::start(&[&usual, arguments].concat())
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

    /// Runs a command that transfers 4 KiB to the host, and gives them.
    fn read(&mut self, sqe: Sqe) -> Vec<u8> {
        let sqe = sqe.with_cid(CommandId(1)).with_sgl1(Sgl::transport(4096));
        let capsule = CapsuleCmd { sqe }.encode(Digests::NONE, 0, 0);
        self.0.write_all(&capsule).unwrap();
        let mut header = [0; 24];
        self.0.read_exact(&mut header).unwrap();
        assert_eq!(header[0], 0x07, "no data");
        let mut data = vec![0; 4096];
        self.0.read_exact(&mut data).unwrap();
        // Unless the data says that it stands for the response.
        if header[1] & 0x08 == 0 {
            self.0.read_exact(&mut [0; 24]).unwrap();
        }
        data
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
    let plane = start(&[]);
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

/// 10,000 namespaces in one subsystem, each written and read.
#[tokio::test]
async fn ten_thousand_namespaces_are_attached_listed_and_used_within_1_gib() {
    let plane = start(&["--namespaces-max", "16384"]);
    let began = Instant::now();
    attach_namespaces(&plane).await;
    let attached = began.elapsed();
    let (mut admin, cntlid) = Queue::admin(&plane);
    let (mut listed, mut last) = (0, 0);
    // Lists of 1024, each behind the last of the one before. [BASE-2.0 §5.17.2.2]
    loop {
        let identify = Sqe::new(0x06).with_cdw(10, 2).with_nsid(NamespaceId(last));
        let page = admin.read(identify);
        let nsids = page
            .chunks(4)
            .map(|it| u32::from_le_bytes(it.try_into().unwrap()));
        let nsids: Vec<u32> = nsids.take_while(|&nsid| nsid > 0).collect();
        let Some(&end) = nsids.last() else { break };
        listed += nsids.len();
        last = end;
    }
    assert_eq!(
        (listed, last),
        (usize::try_from(NAMESPACES).unwrap(), NAMESPACES)
    );
    let (mut queue, _) = Queue::connect(&plane, 1, cntlid);
    for nsid in 1..=NAMESPACES {
        let data = [nsid.to_le_bytes(); 1024].concat();
        let block = |opcode| Sqe::new(opcode).with_nsid(NamespaceId(nsid)).with_nlb(0);
        queue.command(block(0x01).with_sgl1(Sgl::in_capsule(4096)), &data);
        assert!(queue.read(block(0x02)) == data, "{nsid}");
    }
    let used = began.elapsed();
    let resident = resident_bytes(&plane);
    println!(
        "{NAMESPACES} namespaces: attached after {attached:?}, listed and used after {used:?}; \
         resident {} KiB",
        resident >> 10
    );
    assert!(resident <= 1 << 30, "{resident} bytes resident");
}

/// Calls that are under way at a time; the data plane opens 16 backings at once.
const CALLS: u32 = 12;

async fn attach_namespaces(plane: &DataPlane) {
    let channel = format!("http://{}", plane.ready.rpc);
    let client = DataPlaneServiceClient::connect(channel).await.unwrap();
    let mut callers = tokio::task::JoinSet::new();
    for first in 0..CALLS {
        let mut client = client.clone();
        callers.spawn(async move {
            // The first namespace is that of the start flags.
            for nsid in (2..=NAMESPACES).filter(|nsid| nsid % CALLS == first) {
                client.create_namespace(memory(nsid)).await.unwrap();
            }
        });
    }
    callers.join_all().await;
}

fn memory(nsid: u32) -> api::CreateNamespaceRequest {
    let memory = api::MemoryBacking {
        size_bytes: 1 << 20,
    };
    api::CreateNamespaceRequest {
        parent: format!("subsystems/{NQN}"),
        namespace: Some(api::Namespace {
            nsid: i32::try_from(nsid).unwrap(),
            backing: Some(api::Backing {
                kind: Some(api::backing::Kind::Memory(memory)),
            }),
            ..Default::default()
        }),
        request_id: String::new(),
        raw: false,
    }
}
