//! What management says and does while hosts are connected, with our own initiator.

use bowline_api::dataplane::v1 as api;
use bowline_api::dataplane::v1::data_plane_service_client::DataPlaneServiceClient;
use bowline_nvme::log::{DiscoveryEntry, Subtype};
use bowline_nvme::nqn::Nqn;
use bowline_nvmf::host::ControllerConfig;
use bowline_reactor::Config;
use bowline_tcp::host::{HostError, Initiator};
use tonic::transport::Channel;

use crate::harness::{DataPlane, run};
use crate::host::{HOST, Host, soon};

const FIRST: &str = "nqn.2026-11.io.bowline:test:first";
const SECOND: &str = "nqn.2026-11.io.bowline:test:second";

async fn client(plane: &DataPlane) -> DataPlaneServiceClient<Channel> {
    DataPlaneServiceClient::connect(format!("http://{}", plane.ready.rpc))
        .await
        .unwrap()
}

fn start(arguments: &[&str]) -> DataPlane {
    DataPlane::start(&[&["--memory", "16MiB", "--nqn", FIRST], arguments].concat())
}

#[tokio::test]
async fn connections_controllers_and_figures_are_shown() {
    let plane = start(&["--host", HOST]);
    let mut host = Host::connect(&plane, 0, FIRST).unwrap();
    host.write(&[0x5a; 12288]).unwrap();
    let mut back = [0; 4096];
    host.read(&mut back).unwrap();
    assert_eq!(back, [0x5a; 4096]);

    let mut client = client(&plane).await;
    let all = client
        .list_connections(api::ListConnectionsRequest::default())
        .await
        .unwrap();
    let connections = all.into_inner().connections;
    let mut queues: Vec<Option<i32>> = connections.iter().map(|found| found.qid).collect();
    queues.sort_unstable();
    assert_eq!(queues, [Some(0), Some(1)]);
    for found in &connections {
        assert_eq!(
            (found.host_nqn.as_str(), found.subsystem_nqn.as_str()),
            (HOST, FIRST)
        );
        assert_eq!(found.state(), api::ConnectionState::Ready);
        assert_eq!(found.local_address, plane.ready.listen[0].to_string());
    }
    let request = api::ListControllersRequest {
        parent: format!("subsystems/{FIRST}"),
        ..Default::default()
    };
    let controllers = client
        .list_controllers(request)
        .await
        .unwrap()
        .into_inner()
        .controllers;
    let [controller] = &controllers[..] else {
        panic!("not one controller: {controllers:?}")
    };
    assert_eq!(
        (controller.host_nqn.as_str(), controller.io_queue_count),
        (HOST, 1)
    );
    assert!(controller.ready);

    let request = api::GetStatisticsRequest {
        name: format!("subsystems/{FIRST}/namespaces/1"),
    };
    let counted = client.get_statistics(request).await.unwrap().into_inner();
    assert_eq!((counted.read_bytes, counted.written_bytes), (4096, 12288));
    assert_eq!(
        (counted.read_command_count, counted.connection_count),
        (1, 2)
    );
    let scraped = plane.scrape();
    let expected = format!(
        "bowline_target_io_bytes_total{{subsystem=\"{FIRST}\",nsid=\"1\",op=\"write\"}} 12288"
    );
    assert!(scraped.contains(&expected), "{scraped}");
}

#[tokio::test]
async fn host_that_is_not_allowed_is_refused_and_denied_host_is_cut_off() {
    let plane = start(&[]);
    assert!(matches!(
        Host::connect(&plane, 0, FIRST),
        Err(HostError::Stopped(_))
    ));

    let mut client = client(&plane).await;
    let allow = api::AllowHostRequest {
        parent: format!("subsystems/{FIRST}"),
        host_nqn: HOST.to_owned(),
        request_id: String::new(),
    };
    let allowed = client.allow_host(allow).await.unwrap().into_inner();
    let mut host = Host::connect(&plane, 0, FIRST).unwrap();
    host.write(&[1; 4096]).unwrap();

    let deny = api::DenyHostRequest {
        name: allowed.name,
        request_id: String::new(),
    };
    client.deny_host(deny).await.unwrap();
    assert!(host.is_ended());
    assert!(Host::connect(&plane, 0, FIRST).is_err());
}

#[tokio::test]
async fn subsystems_of_two_reactors_are_reached_through_either_listener() {
    let plane = start(&["--host", "any", "--cores", "0,1", "--listen", "127.0.0.1:0"]);
    let mut client = client(&plane).await;
    let subsystem = api::Subsystem {
        nqn: SECOND.to_owned(),
        ..Default::default()
    };
    let create = api::CreateSubsystemRequest {
        subsystem: Some(subsystem),
        request_id: String::new(),
    };
    let made = client.create_subsystem(create).await.unwrap().into_inner();
    assert_eq!(made.reactor_index, 1);
    let memory = api::backing::Kind::Memory(api::MemoryBacking {
        size_bytes: 8 << 20,
    });
    let namespace = api::Namespace {
        backing: Some(api::Backing { kind: Some(memory) }),
        ..Default::default()
    };
    let create = api::CreateNamespaceRequest {
        parent: made.name.clone(),
        namespace: Some(namespace),
        request_id: String::new(),
        raw: false,
    };
    client.create_namespace(create).await.unwrap();
    let allow = api::AllowHostRequest {
        parent: made.name,
        host_nqn: "any".to_owned(),
        request_id: String::new(),
    };
    client.allow_host(allow).await.unwrap();
    let mut hosts = Vec::new();
    for listener in [0, 1] {
        for nqn in [FIRST, SECOND] {
            let mut host = Host::connect(&plane, listener, nqn).unwrap();
            let sent = vec![u8::try_from(hosts.len()).unwrap() + 1; 262_144];
            host.write(&sent).unwrap();
            let mut back = vec![0; sent.len()];
            host.read(&mut back).unwrap();
            assert_eq!(back, sent);
            hosts.push(host);
        }
    }
    let all = client
        .list_connections(api::ListConnectionsRequest::default())
        .await
        .unwrap();
    for found in all.into_inner().connections {
        let owner = i32::from(found.subsystem_nqn == SECOND);
        assert_eq!(found.reactor_index, owner, "{found:?}");
    }
    // Idle hosts do not hold up the end.
    assert_eq!(plane.stop().code(), Some(0));
    assert!(hosts.iter_mut().all(Host::is_ended));
}

#[tokio::test]
async fn deleted_subsystem_ends_its_associations() {
    let plane = start(&["--host", "any"]);
    let mut host = Host::connect(&plane, 0, FIRST).unwrap();
    let delete = api::DeleteSubsystemRequest {
        name: format!("subsystems/{FIRST}"),
        ..Default::default()
    };
    client(&plane).await.delete_subsystem(delete).await.unwrap();
    assert!(host.is_ended());
}

#[test]
fn discovery_tells_the_address_the_host_came_in_on_or_the_advertised_one() {
    use bowline_nvme::nqn::DISCOVERY;
    for (arguments, address, port) in [
        (&["--host", "any"][..], "127.0.0.1", None),
        (
            &["--host", "any", "--advertise", "192.0.2.9:4444"][..],
            "192.0.2.9",
            Some("4444"),
        ),
    ] {
        let plane = start(arguments);
        let mut initiator = Initiator::new(&Config::default()).unwrap();
        let subnqn = Nqn::new(DISCOVERY).unwrap();
        let config = ControllerConfig::new(Nqn::new(HOST).unwrap(), [7; 16], subnqn);
        let deadline = soon(&initiator);
        let entries = initiator
            .discover(plane.ready.listen[0], config, deadline)
            .unwrap();
        let [itself, entry] = &entries[..] else {
            panic!("not two entries: {entries:?}")
        };
        assert_eq!(itself.subtype, CURRENT_DISCOVERY);
        assert_eq!(itself.traddr, entry.traddr);
        let text = |field: &[u8]| {
            String::from_utf8_lossy(field)
                .trim_end_matches([' ', '\0'])
                .to_owned()
        };
        assert_eq!(text(&entry.subnqn), FIRST);
        assert_eq!(text(&entry.traddr), address);
        let expected = plane.ready.listen[0].port().to_string();
        assert_eq!(text(&entry.trsvcid), port.unwrap_or(&expected));
    }
    // Whom a subsystem does not serve, it is not shown to.
    let plane = start(&[]);
    let mut initiator = Initiator::new(&Config::default()).unwrap();
    let subnqn = Nqn::new(DISCOVERY).unwrap();
    let config = ControllerConfig::new(Nqn::new(HOST).unwrap(), [7; 16], subnqn);
    let deadline = soon(&initiator);
    let entries = initiator
        .discover(plane.ready.listen[0], config, deadline)
        .unwrap();
    let itself = |entry: &DiscoveryEntry| entry.subtype == CURRENT_DISCOVERY;
    assert!(entries.iter().all(itself), "{entries:?}");
}

const CURRENT_DISCOVERY: u8 = Subtype::CurrentDiscovery.wire();

/// NQN and address of what discovery tells under a name.
fn discover(plane: &DataPlane, discovery_nqn: &str) -> Vec<(String, String)> {
    let mut initiator = Initiator::new(&Config::default()).unwrap();
    let subnqn = Nqn::new(discovery_nqn).unwrap();
    let config = ControllerConfig::new(Nqn::new(HOST).unwrap(), [7; 16], subnqn);
    let deadline = soon(&initiator);
    let entries = initiator.discover(plane.ready.listen[0], config, deadline);
    let text = |field: &[u8]| {
        let text = String::from_utf8_lossy(field);
        text.trim_end_matches([' ', '\0']).to_owned()
    };
    let entries = entries.unwrap().into_iter();
    entries
        .map(|entry| (text(&entry.subnqn), text(&entry.traddr)))
        .collect()
}

/// What the data plane says of itself.
async fn this(plane: &DataPlane) -> api::DataPlane {
    let name = "dataplane".to_owned();
    let request = api::GetDataPlaneRequest { name };
    let answer = client(plane).await.get_data_plane(request).await;
    answer.unwrap().into_inner()
}

#[tokio::test]
async fn discovery_has_a_name_of_its_own_and_points_elsewhere() {
    use bowline_nvme::nqn::DISCOVERY;
    const OWN: &str = "nqn.2026-11.io.bowline:test:discovery";
    let plane = start(&["--discovery-nqn", OWN, "--referral", "192.0.2.7"]);
    let referral = |address: &str| (DISCOVERY.to_owned(), address.to_owned());
    assert!(discover(&plane, OWN).contains(&referral("192.0.2.7")));
    assert!(discover(&plane, DISCOVERY).contains(&referral("192.0.2.7")));

    let rpc = plane.rpc();
    let verb = |line: &[&str]| run(&[line, &["--rpc", &rpc]].concat());
    let there = "192.0.2.8:4420";
    let (code, _, stderr) = verb(&["referral", "add", there, "--nqn", SECOND]);
    assert_eq!(code, 0, "{stderr}");
    let second = (SECOND.to_owned(), "192.0.2.8".to_owned());
    assert!(discover(&plane, OWN).contains(&second));
    let (_, stdout, _) = verb(&["referral", "list", "-o", "json"]);
    let list: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(list["items"][0]["address"], "192.0.2.7:8009");
    assert_eq!(list["items"][0]["persistent"], true);
    assert_eq!(list["items"][1]["nqn"], SECOND);
    let (_, _, stderr) = verb(&["referral", "add", there]);
    assert!(stderr.contains("exists already"), "{stderr}");
    assert_eq!(verb(&["referral", "remove", there]).0, 0);
    let (code, stdout, _) = verb(&["referral", "remove", "192.0.2.7"]);
    assert_eq!(code, 0);
    assert!(stdout.contains("until the next restart"), "{stdout}");
    let left = discover(&plane, OWN);
    assert!(left.iter().all(|(_, address)| !address.starts_with("192.")));

    let this = this(&plane).await;
    assert_eq!(this.discovery_nqn, OWN);
    assert_eq!(this.limits.unwrap().max_transfer_bytes, 1 << 20);
}

#[tokio::test]
async fn data_planes_have_discovery_names_of_their_own() {
    let (first, second) = (start(&[]), start(&[]));
    let names = [
        this(&first).await.discovery_nqn,
        this(&second).await.discovery_nqn,
    ];
    assert_ne!(names[0], names[1]);
    // A data plane that serves nobody tells of nothing but itself.
    let told = discover(&first, &names[0]);
    assert!(told.iter().all(|(nqn, _)| *nqn == names[0]), "{told:?}");
}

#[test]
fn controllers_and_statistics_are_listed() {
    let plane = start(&["--host", HOST]);
    let mut host = Host::connect(&plane, 0, FIRST).unwrap();
    host.write(&[0x5a; 12288]).unwrap();
    let rpc = plane.rpc();
    let verb = |line: &[&str]| {
        let (code, stdout, stderr) = run(&[line, &["-o", "json", "--rpc", &rpc]].concat());
        assert_eq!(code, 0, "{stderr}");
        let list: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        list["items"][0].clone()
    };
    let controller = verb(&["controller", "list", FIRST]);
    assert_eq!(controller["hostNqn"], HOST);
    assert_eq!(controller["ready"], true);
    assert_eq!(controller["ioQueueCount"], 1);
    let silent = controller["silentSeconds"].as_u64().unwrap();
    assert!(silent <= controller["connectedSeconds"].as_u64().unwrap());
    for scope in [&[][..], &[FIRST, "1"]] {
        let counted = verb(&[&["statistics", "show"], scope].concat());
        assert_eq!(counted["writtenBytes"], 12288);
        assert_eq!(counted["connectionCount"], 2);
    }
}
