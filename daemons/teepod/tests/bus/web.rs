// SPDX-License-Identifier: Apache-2.0
use crate::world::{COMPOSE, World};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;

/// One request; status and body.
async fn request(world: &World, line: &str, token: Option<&str>, body: &str) -> (u16, String) {
    let mut text =
        format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    if let Some(token) = token {
        text += &format!("Authorization: Bearer {token}\r\n");
    }
    text += "Content-Type: application/json\r\n\r\n";
    text += body;
    let port = world.http;
    let reply = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply
    });
    let reply = reply.await.unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    assert!(head.to_lowercase().contains("x-app-version: v"), "{head}");
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p32_nothing_is_answered_without_the_token() {
    let world = World::new().await;
    let path = world.path("state/token");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let token = std::fs::read_to_string(path).unwrap().trim().to_owned();
    for line in [
        "POST /prpc/Teepod.Status",
        "GET /prpc/Teepod.Status",
        "POST /prpc/Status",
        "POST /guest/Info",
        "GET /logs?id=a",
        "GET /",
        "GET /nope",
        "POST /prpc/Teepod.CreateVm",
    ] {
        for wrong in [None, Some("wrong"), Some("")] {
            assert_eq!(request(&world, line, wrong, "{}").await.0, 401, "{line} {wrong:?}");
        }
    }
    assert_eq!(request(&world, "GET /nope", Some(&token), "").await.0, 404);
    let (status, body) = request(&world, "POST /prpc/Teepod.Version", Some(&token), "").await;
    assert_eq!((status, body.contains("\"version\":\"0.")), (200, true), "{body}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_originals_calls_work() {
    let world = World::new().await;
    let token = std::fs::read_to_string(world.path("state/token")).unwrap().trim().to_owned();
    let call = async |method: &str, body: serde_json::Value| {
        let line = format!("POST /prpc/Teepod.{method}");
        let (status, text) = request(&world, &line, Some(&token), &body.to_string()).await;
        (status, serde_json::from_str::<serde_json::Value>(&text).unwrap_or_default())
    };
    let ask = serde_json::json!({"name": "web", "image": "dstack-0.1.0", "compose_file": COMPOSE, "vcpu": 1,
        "memory": 1024, "disk_size": 2, "ports": [{"protocol": "tcp", "host_port": 21200, "vm_port": 80}]});
    let (status, reply) = call("CreateVm", ask.clone()).await;
    assert_eq!(status, 200, "{reply}");
    let id = reply["id"].as_str().unwrap().to_owned();
    world.until_state("web", "running").await;
    let (_, reply) = call("Status", serde_json::json!({})).await;
    let vm = &reply["vms"][0];
    assert_eq!(
        (vm["status"].as_str(), vm["boot_progress"].as_str()),
        (Some("running"), Some("done")),
        "{reply}"
    );
    assert_eq!(vm["configuration"]["compose_file"], COMPOSE);
    assert_eq!(vm["configuration"]["memory"], 1024);
    assert!(vm["uptime"].as_str().unwrap().ends_with('s') && vm["exited_at"].is_null(), "{vm}");
    assert_eq!(reply["port_mapping_enabled"], true);
    let (status, reply) = call("CreateVm", ask).await;
    assert_eq!(status, 400);
    assert!(reply["error"].as_str().unwrap().contains("already"), "{reply}");
    assert_eq!(call("RemoveVm", serde_json::json!({"id": id})).await.0, 400);
    let upgrade = serde_json::json!({"id": id, "compose_file": COMPOSE.replace("hello", "world")});
    let (_, reply) = call("UpgradeApp", upgrade).await;
    assert_eq!(reply["id"].as_str().unwrap().len(), 40);
    assert_eq!(call("StopVm", serde_json::json!({"id": id})).await.0, 200);
    assert_eq!(call("ResizeVm", serde_json::json!({"id": id, "memory": 2048})).await.0, 200);
    let (_, reply) = call("GetInfo", serde_json::json!({"id": id})).await;
    assert_eq!(reply["info"]["configuration"]["memory"], 2048);
    assert_eq!(call("GetMeta", serde_json::json!({})).await.1["resources"]["max_cvm_number"], 1000);
    assert_eq!(call("ListImages", serde_json::json!({})).await.1["images"][0]["name"], "dstack-0.1.0");
    assert_eq!(call("RemoveVm", serde_json::json!({"id": id})).await.0, 200);
    assert_eq!(call("GetInfo", serde_json::json!({"id": id})).await.1["found"], false);
    assert_eq!(call("Nope", serde_json::json!({})).await.0, 404);
    assert!(world.vm_files().is_empty());
}
