//! The management API over gRPC and through the command line.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::harness::{DataPlane, bowline, run};
use bowline_api::Failure;
use bowline_api::dataplane::v1 as api;
use bowline_api::dataplane::v1::data_plane_service_client::DataPlaneServiceClient;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;

const NQN: &str = "nqn.2026-11.io.bowline:test:second";
const FIRST: &str = "nqn.2026-11.io.bowline:test:first";
const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:0f4a2b9e-5e57-4b5c-9a53-6b1f6ac9d1a2";
const REQUEST_ID: &str = "5b3e1c1a-3f0e-4b7e-8f52-0d8c5a3f0b11";

async fn client(plane: &DataPlane) -> DataPlaneServiceClient<Channel> {
    DataPlaneServiceClient::connect(format!("http://{}", plane.ready.rpc))
        .await
        .unwrap()
}

fn start(arguments: &[&str]) -> DataPlane {
    DataPlane::start(&[&["--memory", "16MiB", "--nqn", FIRST], arguments].concat())
}

fn create(nqn: &str, request_id: &str) -> api::CreateSubsystemRequest {
    let subsystem = api::Subsystem {
        nqn: nqn.to_owned(),
        ..Default::default()
    };
    api::CreateSubsystemRequest {
        subsystem: Some(subsystem),
        request_id: request_id.to_owned(),
    }
}

fn memory(nqn: &str, nsid: i32, size_bytes: i64) -> api::CreateNamespaceRequest {
    let kind = api::backing::Kind::Memory(api::MemoryBacking { size_bytes });
    namespace(nqn, nsid, kind)
}

fn path(nqn: &str, path: &std::path::Path) -> api::CreateNamespaceRequest {
    let path = path.to_str().unwrap().to_owned();
    namespace(
        nqn,
        0,
        api::backing::Kind::Path(api::PathBacking {
            path,
            shared: false,
        }),
    )
}

fn namespace(nqn: &str, nsid: i32, kind: api::backing::Kind) -> api::CreateNamespaceRequest {
    api::CreateNamespaceRequest {
        parent: format!("subsystems/{nqn}"),
        namespace: Some(api::Namespace {
            nsid,
            backing: Some(api::Backing { kind: Some(kind) }),
            ..Default::default()
        }),
        request_id: String::new(),
        raw: false,
    }
}

fn reason(status: &Status) -> String {
    Failure::explain(status)
        .unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"))
        .0
}

#[tokio::test]
async fn health_serves_and_reflection_lists_the_service() {
    let plane = start(&[]);
    let channel = Channel::from_shared(format!("http://{}", plane.ready.rpc)).unwrap();
    let channel = channel.connect().await.unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    for service in ["", "bowline.dataplane.v1.DataPlaneService"] {
        let request = tonic_health::pb::HealthCheckRequest {
            service: service.to_owned(),
        };
        let answer = health.check(request).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service:?}");
    }
    use tonic_reflection::pb::v1 as reflection;
    let mut client = reflection::server_reflection_client::ServerReflectionClient::new(channel);
    let request = reflection::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            reflection::server_reflection_request::MessageRequest::ListServices(String::new()),
        ),
    };
    let asked = tokio_stream::once(request);
    let mut answers = client
        .server_reflection_info(asked)
        .await
        .unwrap()
        .into_inner();
    let answer = answers
        .message()
        .await
        .unwrap()
        .unwrap()
        .message_response
        .unwrap();
    let listed = format!("{answer:?}");
    for service in [
        "bowline.dataplane.v1.DataPlaneService",
        "grpc.health.v1.Health",
    ] {
        assert!(listed.contains(service), "{listed}");
    }
}

#[tokio::test]
async fn flags_make_a_persistent_subsystem_that_serves_nobody() {
    let plane = start(&[]);
    let mut client = client(&plane).await;
    let all = client
        .list_subsystems(api::ListSubsystemsRequest::default())
        .await
        .unwrap();
    let [first] = &all.into_inner().subsystems[..] else {
        panic!("not one subsystem")
    };
    assert_eq!(first.nqn, FIRST);
    assert_eq!(first.host_access(), api::HostAccess::None);
    assert_eq!((first.namespace_count, first.persistent), (1, true));
    let name = format!("subsystems/{FIRST}/namespaces/1");
    let found = client
        .get_namespace(api::GetNamespaceRequest { name })
        .await
        .unwrap();
    let found = found.into_inner();
    assert_eq!((found.size_bytes, found.block_size_bytes), (16 << 20, 4096));
    assert!(found.persistent && !found.volatile_write_cache && !found.read_only);
    let name = "dataplane".to_owned();
    let this = client
        .get_data_plane(api::GetDataPlaneRequest { name })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(this.listeners, [plane.ready.listen[0].to_string()]);
    assert_eq!(this.reactors.len(), 1);
}

#[tokio::test]
async fn identifiers_are_the_same_after_a_restart() {
    let mut seen = Vec::new();
    for _ in 0..2 {
        let plane = start(&[]);
        let name = format!("subsystems/{FIRST}/namespaces/1");
        let request = api::GetNamespaceRequest { name };
        let found = client(&plane)
            .await
            .get_namespace(request)
            .await
            .unwrap()
            .into_inner();
        seen.push((found.uuid, found.nguid));
    }
    assert_eq!(seen[0], seen[1]);
}

#[tokio::test]
async fn namespaces_come_and_go() {
    let plane = start(&[]);
    let mut client = client(&plane).await;
    client.create_subsystem(create(NQN, "")).await.unwrap();
    let third = client
        .create_namespace(memory(NQN, 3, 8 << 20))
        .await
        .unwrap()
        .into_inner();
    let lowest = client
        .create_namespace(memory(NQN, 0, 1 << 20))
        .await
        .unwrap()
        .into_inner();
    assert_eq!((third.nsid, lowest.nsid), (3, 1));
    assert!(!third.persistent);
    let list = api::ListNamespacesRequest {
        parent: "subsystems/-".to_owned(),
        ..Default::default()
    };
    let all = client
        .list_namespaces(list)
        .await
        .unwrap()
        .into_inner()
        .namespaces;
    let names: Vec<(i32, bool)> = all
        .iter()
        .map(|found| (found.nsid, found.persistent))
        .collect();
    assert_eq!(names, [(1, true), (1, false), (3, false)]);
    let delete = api::DeleteNamespaceRequest {
        name: third.name,
        request_id: String::new(),
    };
    client.delete_namespace(delete.clone()).await.unwrap();
    let status = client.delete_namespace(delete).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::NotFound, "NOT_FOUND")
    );
    let next = client
        .create_namespace(memory(NQN, 0, 1 << 20))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        next.nsid, 4,
        "an identifier just given up is not another disk"
    );
    let delete = api::DeleteSubsystemRequest {
        name: format!("subsystems/{NQN}"),
        ..Default::default()
    };
    client.delete_subsystem(delete).await.unwrap();
    let all = client
        .list_subsystems(api::ListSubsystemsRequest::default())
        .await
        .unwrap();
    assert_eq!(all.into_inner().subsystems.len(), 1);
}

#[tokio::test]
async fn repeated_request_has_one_effect() {
    let plane = start(&[]);
    let mut client = client(&plane).await;
    let first = client
        .create_subsystem(create(NQN, REQUEST_ID))
        .await
        .unwrap()
        .into_inner();
    let again = client
        .create_subsystem(create(NQN, REQUEST_ID))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(first, again);
    let status = client.create_subsystem(create(NQN, "")).await.unwrap_err();
    assert_eq!(reason(&status), "ALREADY_EXISTS");
    let other = create("nqn.2026-11.io.bowline:test:third", REQUEST_ID);
    let status = client.create_subsystem(other).await.unwrap_err();
    assert_eq!(reason(&status), "REQUEST_ID_REUSED");
}

#[tokio::test]
async fn lists_come_in_pages() {
    let plane = start(&[]);
    let mut client = client(&plane).await;
    for index in 0..7 {
        let nqn = format!("nqn.2026-11.io.bowline:page:{index}");
        client.create_subsystem(create(&nqn, "")).await.unwrap();
    }
    let mut seen = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = api::ListSubsystemsRequest {
            page_size: 3,
            page_token,
        };
        let page = client.list_subsystems(request).await.unwrap().into_inner();
        assert!(page.subsystems.len() <= 3);
        seen.extend(page.subsystems.into_iter().map(|subsystem| subsystem.nqn));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(seen.len(), 8);
    assert!(seen.is_sorted());
    let request = api::ListConnectionsRequest {
        page_token: "00".to_owned(),
        page_size: 0,
    };
    let status = client.list_connections(request).await.unwrap_err();
    assert_eq!(reason(&status), "INVALID_PAGE_TOKEN");
}

fn impossible_subsystems() -> [api::Subsystem; 4] {
    let possible = || api::Subsystem {
        nqn: NQN.to_owned(),
        ..Default::default()
    };
    [
        api::Subsystem {
            serial_number: " space".to_owned(),
            ..possible()
        },
        api::Subsystem {
            cntlid_range: Some(api::CntlidRange {
                first_cntlid: 1,
                last_cntlid: 65520,
            }),
            ..possible()
        },
        api::Subsystem {
            controller_max_count: -1,
            ..possible()
        },
        api::Subsystem {
            namespace_max_count: 16385,
            ..possible()
        },
    ]
}

#[tokio::test]
async fn impossible_requests_say_why() {
    let plane = start(&[]);
    let mut client = client(&plane).await;
    let mut refused = Vec::new();
    for nqn in [
        "",
        "bob",
        "nqn.2014-08.org.nvmexpress.discovery",
        "nqn.2026-11.io:a/b",
    ] {
        refused.push(client.create_subsystem(create(nqn, "")).await.unwrap_err());
    }
    for subsystem in impossible_subsystems() {
        let request = api::CreateSubsystemRequest {
            subsystem: Some(subsystem),
            request_id: String::new(),
        };
        refused.push(client.create_subsystem(request).await.unwrap_err());
    }
    let mut nil = memory(FIRST, 2, 4096);
    nil.namespace.as_mut().unwrap().uuid = "00000000-0000-0000-0000-000000000000".to_owned();
    refused.push(client.create_namespace(nil).await.unwrap_err());
    for (nsid, bytes) in [(-1, 4096), (1000, 4096), (2, 0), (2, -4096), (2, 1000)] {
        refused.push(
            client
                .create_namespace(memory(FIRST, nsid, bytes))
                .await
                .unwrap_err(),
        );
    }
    for status in refused {
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert_eq!(reason(&status), "INVALID_FIELD");
    }
    let status = client
        .create_namespace(memory(FIRST, 1, 4096))
        .await
        .unwrap_err();
    assert_eq!(reason(&status), "ALREADY_EXISTS");
    let status = client
        .create_namespace(memory(NQN, 1, 4096))
        .await
        .unwrap_err();
    assert_eq!(reason(&status), "NOT_FOUND");
    let list = api::ListHostsRequest {
        parent: format!("subsystems/{NQN}"),
        ..Default::default()
    };
    assert_eq!(
        reason(&client.list_hosts(list).await.unwrap_err()),
        "NOT_FOUND"
    );
}

#[tokio::test]
async fn subsystem_and_namespace_have_the_identity_and_limits_asked_for() {
    let plane = start(&[]);
    let mut client = client(&plane).await;
    let range = api::CntlidRange {
        first_cntlid: 17,
        last_cntlid: 20,
    };
    let subsystem = api::Subsystem {
        nqn: NQN.to_owned(),
        serial_number: "SERIAL 7".to_owned(),
        cntlid_range: Some(range),
        controller_max_count: 3,
        namespace_max_count: 10_000,
        ..Default::default()
    };
    let request = api::CreateSubsystemRequest {
        subsystem: Some(subsystem),
        request_id: String::new(),
    };
    let made = client.create_subsystem(request).await.unwrap().into_inner();
    assert_eq!(made.serial_number, "SERIAL 7");
    assert_eq!(made.cntlid_range, Some(range));
    assert_eq!(
        (made.controller_max_count, made.namespace_max_count),
        (3, 10_000)
    );
    let mut last = memory(NQN, 10_000, 1 << 20);
    let identity = last.namespace.as_mut().unwrap();
    identity.uuid = "5b3e1c1a-3f0e-4b7e-8f52-0d8c5a3f0b11".to_owned();
    identity.nguid = "00112233445566778899AABBCCDDEEFF".to_owned();
    let made = client.create_namespace(last).await.unwrap().into_inner();
    assert_eq!(made.uuid, "5b3e1c1a-3f0e-4b7e-8f52-0d8c5a3f0b11");
    assert_eq!(made.nguid, "00112233445566778899aabbccddeeff");
    // Hosts would take it for the same disk, wherever in the data plane it is.
    let mut twin = memory(FIRST, 7, 1 << 20);
    twin.namespace.as_mut().unwrap().nguid = made.nguid;
    let status = client.create_namespace(twin).await.unwrap_err();
    assert_eq!(reason(&status), "ALREADY_EXISTS");
}

#[tokio::test]
async fn path_backs_a_namespace_only_if_allowed_and_never_shrinks() {
    let folder = tempfile::tempdir().unwrap();
    let drive = folder.path().join("drive");
    let file = std::fs::File::create(&drive).unwrap();
    file.set_len(8 << 20).unwrap();

    let plane = start(&[]);
    let status = client(&plane)
        .await
        .create_namespace(path(FIRST, &drive))
        .await
        .unwrap_err();
    let expected = (Code::PermissionDenied, "PATH_NOT_ALLOWED");
    assert_eq!((status.code(), reason(&status).as_str()), expected);

    let plane = start(&["--allow-path", folder.path().to_str().unwrap()]);
    let mut client = client(&plane).await;
    let made = client
        .create_namespace(path(FIRST, &drive))
        .await
        .unwrap()
        .into_inner();
    assert_eq!((made.nsid, made.size_bytes), (2, 8 << 20));
    let status = client
        .create_namespace(path(FIRST, &drive))
        .await
        .unwrap_err();
    assert_eq!(reason(&status), "BACKING_IN_USE");

    file.set_len(12 << 20).unwrap();
    let resize = api::ResizeNamespaceRequest {
        name: made.name,
        request_id: String::new(),
    };
    let grown = client
        .resize_namespace(resize.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(grown.size_bytes, 12 << 20);
    file.set_len(4 << 20).unwrap();
    let status = client.resize_namespace(resize).await.unwrap_err();
    assert_eq!(reason(&status), "SHRINK_REFUSED");
    let get = api::GetNamespaceRequest { name: grown.name };
    assert_eq!(
        client
            .get_namespace(get)
            .await
            .unwrap()
            .into_inner()
            .size_bytes,
        12 << 20
    );
}

#[tokio::test]
async fn hosts_are_allowed_and_denied() {
    let plane = start(&["--host", HOST]);
    let mut client = client(&plane).await;
    let allow = |host: &str| api::AllowHostRequest {
        parent: format!("subsystems/{FIRST}"),
        host_nqn: host.to_owned(),
        request_id: String::new(),
    };
    // Allowing again does not make it less persistent.
    assert!(
        client
            .allow_host(allow(HOST))
            .await
            .unwrap()
            .into_inner()
            .persistent
    );
    assert!(
        !client
            .allow_host(allow("any"))
            .await
            .unwrap()
            .into_inner()
            .persistent
    );
    assert_eq!(
        reason(&client.allow_host(allow("bob")).await.unwrap_err()),
        "INVALID_FIELD"
    );
    let list = api::ListHostsRequest {
        parent: "subsystems/-".to_owned(),
        ..Default::default()
    };
    let hosts = client.list_hosts(list).await.unwrap().into_inner().hosts;
    let nqns: Vec<&str> = hosts.iter().map(|host| host.nqn.as_str()).collect();
    assert_eq!(nqns, ["any", HOST]);
    for host in hosts {
        let deny = api::DenyHostRequest {
            name: host.name,
            request_id: String::new(),
        };
        client.deny_host(deny.clone()).await.unwrap();
        assert_eq!(
            reason(&client.deny_host(deny).await.unwrap_err()),
            "NOT_FOUND"
        );
    }
    let get = api::GetSubsystemRequest {
        name: format!("subsystems/{FIRST}"),
    };
    let found = client.get_subsystem(get).await.unwrap().into_inner();
    assert_eq!(found.host_access(), api::HostAccess::None);
}

#[tokio::test]
async fn idle_data_plane_counts_nothing() {
    let plane = start(&[]);
    let mut client = client(&plane).await;
    for name in [
        "dataplane".to_owned(),
        format!("subsystems/{FIRST}/namespaces/1"),
    ] {
        let request = api::GetStatisticsRequest { name: name.clone() };
        let counted = client.get_statistics(request).await.unwrap().into_inner();
        assert_eq!(
            (counted.name, counted.read_bytes, counted.connection_count),
            (name, 0, 0)
        );
    }
    let request = api::GetStatisticsRequest {
        name: format!("subsystems/{NQN}"),
    };
    assert_eq!(
        reason(&client.get_statistics(request).await.unwrap_err()),
        "NOT_FOUND"
    );
    let controllers = api::ListControllersRequest {
        parent: "subsystems/-".to_owned(),
        ..Default::default()
    };
    let controllers = client
        .list_controllers(controllers)
        .await
        .unwrap()
        .into_inner();
    assert!(controllers.controllers.is_empty());
}

#[test]
fn verbs_print_what_the_api_says() {
    let plane = start(&[]);
    let rpc = plane.rpc();
    let verb = |line: &[&str]| run(&[line, &["--rpc", &rpc]].concat());

    let (code, stdout, stderr) = verb(&["subsystem", "create", NQN]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("gone after a restart"), "{stdout}");
    assert_eq!(verb(&["namespace", "add", NQN, "--memory", "8MiB"]).0, 0);
    assert_eq!(verb(&["host", "allow", NQN, "any"]).0, 0);

    let (_, stdout, _) = verb(&["subsystem", "list"]);
    let lines: Vec<&str> = stdout.lines().collect();
    assert!(lines[0].starts_with("NQN") && lines.len() == 3, "{stdout}");
    assert!(
        lines[2].starts_with(NQN) && lines[2].ends_with("any"),
        "{stdout}"
    );

    let (_, stdout, _) = verb(&["namespace", "list", NQN, "-o", "json"]);
    let list: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(list["items"][0]["sizeBytes"], 8 << 20);
    assert_eq!(list["items"][0]["backing"], "memory");

    let (_, stdout, _) = verb(&["host", "list", "-o", "yaml"]);
    assert!(stdout.contains("nqn: any"), "{stdout}");
    let (code, stdout, _) = verb(&["connection", "list", "-o", "wide"]);
    assert_eq!((code, stdout.lines().count()), (0, 1), "{stdout}");

    let (code, _, stderr) = verb(&["namespace", "remove", NQN, "1"]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("--yes"), "{stderr}");
    assert_eq!(verb(&["namespace", "remove", NQN, "1", "--yes"]).0, 0);
    assert_eq!(verb(&["host", "deny", NQN, "any"]).0, 0);
    assert_eq!(verb(&["subsystem", "delete", NQN]).0, 0);
}

#[test]
fn watch_ends_when_nobody_reads_it_any_more() {
    let plane = start(&[]);
    let mut watch = bowline(&["host", "list", "--watch", "--rpc", &plane.rpc()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    lines.next().unwrap().unwrap();
    // Nothing changes, so nothing is written any more.
    drop(lines);
    assert_eq!(watch.wait().unwrap().code(), Some(0));
}

#[test]
fn watched_list_is_told_again_when_it_changes() {
    let plane = start(&[]);
    let rpc = plane.rpc();
    let mut watch = bowline(&["host", "list", "--watch", "-o", "json", "--rpc", &rpc])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut next = || {
        let line = lines.next().unwrap().unwrap();
        let list: serde_json::Value = serde_json::from_str(&line).unwrap();
        list["items"].as_array().unwrap().len()
    };
    assert_eq!(next(), 0);
    assert_eq!(run(&["host", "allow", FIRST, "any", "--rpc", &rpc]).0, 0);
    assert_eq!(next(), 1);
    // Its data plane goes, and so does it.
    drop(plane);
    assert_eq!(watch.wait().unwrap().code(), Some(1));
}

#[test]
fn undoing_the_start_flags_says_that_it_lasts_until_a_restart() {
    let plane = start(&["--host", HOST]);
    let rpc = plane.rpc();
    let until = "until the next restart: it is in the start flags";
    for (line, expected) in [
        (&["host", "deny", FIRST, HOST][..], true),
        (&["host", "allow", FIRST, HOST], false),
        (&["host", "deny", FIRST, HOST], false),
        (&["namespace", "remove", FIRST, "1", "--yes"], true),
        (&["subsystem", "delete", FIRST], true),
    ] {
        let (code, stdout, stderr) = run(&[line, &["--rpc", &rpc]].concat());
        assert_eq!(code, 0, "{stderr}");
        assert_eq!(stdout.contains(until), expected, "{line:?}: {stdout}");
    }
}

#[test]
fn failed_verb_says_what_why_and_what_to_do() {
    let plane = start(&[]);
    let line = [
        "namespace",
        "add",
        FIRST,
        "--path",
        "/dev/null",
        "--rpc",
        &plane.rpc(),
    ];
    let (code, stdout, stderr) = run(&line);
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(
        stderr.starts_with(&format!("error: namespace not added to {FIRST}")),
        "{stderr}"
    );
    assert!(
        stderr.contains("\ncause: ") && stderr.contains("\nhint:  "),
        "{stderr}"
    );
    assert!(stderr.contains("[PATH_NOT_ALLOWED]"), "{stderr}");
    // Nobody listens on the port of a protocol that died out in the eighties.
    let rpc = "127.0.0.1:1";
    let (code, _, stderr) = run(&["subsystem", "list", "--rpc", rpc]);
    assert_eq!(code, 1);
    assert!(
        stderr.contains(&format!("no data plane reached at {rpc}")),
        "{stderr}"
    );
}
