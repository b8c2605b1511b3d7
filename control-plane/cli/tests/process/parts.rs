//! Volumes and snapshots over the management API: what hosts know them by, and lists of them.

use bowline_api::Failure;
use bowline_api::dataplane::v1 as api;
use bowline_api::dataplane::v1::pool_service_client::PoolServiceClient;
use tonic::Status;
use tonic::transport::Channel;

use crate::harness::DataPlane;
use crate::host::Host;
use crate::volumes::{refused, verb};

const UUID: &str = "5b3f9c58-6a43-4d0f-8f43-3d8a2c1f7e11";
const OTHER: &str = "0f4a2b9e-5e57-4b5c-9a53-6b1f6ac9d1a2";
const SUBSYSTEM: &str = "nqn.2026-11.io.bowline:test:other";

/// A data plane whose pool has the volumes a and b.
async fn start() -> (DataPlane, PoolServiceClient<Channel>) {
    let plane = DataPlane::start(&["--memory", "256MiB", "--format", "--host", "any"]);
    for name in ["a", "b"] {
        verb(&plane, &["volume", "create", name, "--size", "8MiB"]);
    }
    let address = format!("http://{}", plane.ready.rpc);
    let client = PoolServiceClient::connect(address).await.unwrap();
    (plane, client)
}

fn snapshot(volume: &str, uuid: &str) -> api::CreateSnapshotRequest {
    api::CreateSnapshotRequest {
        parent: format!("volumes/{volume}"),
        snapshot: Some(api::Snapshot {
            uuid: uuid.to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn reason(status: &Status) -> String {
    Failure::explain(status).unwrap().0
}

#[tokio::test]
async fn two_parts_of_a_pool_never_have_one_uuid() {
    let (plane, mut client) = start().await;
    let taken = client.create_snapshot(snapshot("a", UUID)).await.unwrap();
    // Asked for again it is the same one.
    let again = client.create_snapshot(snapshot("a", UUID)).await.unwrap();
    assert_eq!(taken.into_inner(), again.into_inner());
    let other = client.create_snapshot(snapshot("b", UUID)).await;
    assert_eq!(reason(&other.unwrap_err()), "ALREADY_EXISTS");
    let create = ["volume", "create", "c", "--size", "8MiB", "--uuid", UUID];
    let why = refused(&plane, &create);
    assert!(why.contains("has the same UUID"), "{why}");

    // Nor with what is no part of it.
    verb(&plane, &["subsystem", "create", SUBSYSTEM]);
    let add = ["namespace", "add", SUBSYSTEM, "--memory", "1MiB", "--uuid"];
    verb(&plane, &[&add[..], &[OTHER]].concat());
    let other = client.create_snapshot(snapshot("b", OTHER)).await;
    assert_eq!(reason(&other.unwrap_err()), "ALREADY_EXISTS");
    let create = ["volume", "create", "c", "--size", "8MiB", "--uuid", OTHER];
    let why = refused(&plane, &create);
    assert!(why.contains("would take the two for one disk"), "{why}");
}

#[tokio::test]
async fn a_snapshot_is_exported_as_itself_or_not_at_all() {
    let (plane, mut client) = start().await;
    client.create_snapshot(snapshot("a", UUID)).await.unwrap();
    let name = format!("a/{UUID}");
    let subsystem = format!("nqn.2026-11.io.bowline:snapshot:{UUID}");
    // Somebody has made a subsystem that is called like it.
    verb(&plane, &["subsystem", "create", &subsystem]);
    let export = ["snapshot", "export", &name, "--host", "any"];
    let why = refused(&plane, &export);
    assert!(why.contains("exists already"), "{why}");
    Host::connect(&plane, 0, &subsystem).err().unwrap();
    let why = refused(&plane, &["snapshot", "connect", &name]);
    assert!(why.contains("is not exported"), "{why}");
    // It is not withdrawn with the snapshot either.
    verb(&plane, &["snapshot", "withdraw", &name]);
    verb(&plane, &["subsystem", "delete", &subsystem]);

    // Or a namespace that hosts would take for it.
    verb(&plane, &["subsystem", "create", SUBSYSTEM]);
    let add = ["namespace", "add", SUBSYSTEM, "--memory", "1MiB", "--uuid"];
    verb(&plane, &[&add[..], &[UUID]].concat());
    let why = refused(&plane, &export);
    assert!(why.contains("would take the two for one disk"), "{why}");
    verb(&plane, &["subsystem", "delete", SUBSYSTEM, "--yes"]);
    verb(&plane, &export);
    Host::connect(&plane, 0, &subsystem).unwrap();
    verb(&plane, &["snapshot", "withdraw", &name]);
    Host::connect(&plane, 0, &subsystem).err().unwrap();
}

#[tokio::test]
async fn volumes_of_many_hosts_are_listed_in_pages_that_clients_take() {
    const VOLUMES: usize = 80;
    let hosts: Vec<String> = (0..256)
        .map(|index| format!("nqn.2026-11.io.bowline:host:{index:0>190}"))
        .collect();
    let hosts = hosts.iter().flat_map(|host| ["--host", host.as_str()]);
    let flags = ["--memory", "256MiB", "--format"].into_iter().chain(hosts);
    let plane = DataPlane::start(&flags.collect::<Vec<_>>());
    let address = format!("http://{}", plane.ready.rpc);
    let mut client = PoolServiceClient::connect(address).await.unwrap();
    for index in 0..VOLUMES {
        let volume = api::Volume {
            display_name: format!("v{index}"),
            size_bytes: 1 << 20,
            ..Default::default()
        };
        let request = api::CreateVolumeRequest {
            volume: Some(volume),
            ..Default::default()
        };
        client.create_volume(request).await.unwrap();
    }
    let list = verb(&plane, &["volume", "list", "-o", "json"]);
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let items = list["items"].as_array().unwrap();
    assert_eq!(items.len(), VOLUMES);
    assert_eq!(items[7]["hostNqns"].as_array().unwrap().len(), 256);
}
