// SPDX-License-Identifier: Apache-2.0
use crate::world::{COMPOSE, World, options, ports};
use dstack_service::api::teepod1::Error;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p04_fifty_creations_at_once() {
    let world = World::new().await;
    let create = |name: String, port: u16| {
        let manager = world.manager.clone();
        async move {
            let given = options(&[("start", false.into()), ("ports", ports(&[("tcp", port, 80)]))]);
            manager.create_vm(&name, COMPOSE.as_bytes(), given).await
        }
    };
    let begun = Instant::now();
    let all = (0..50).map(|i| create(format!("vm-{i}"), 22_000 + i));
    for created in futures_util::future::join_all(all).await {
        created.unwrap();
    }
    println!("50 CreateVm at once: {:?}", begun.elapsed());
    let mut cids = BTreeSet::new();
    for row in world.manager.list_vms().await.unwrap() {
        cids.insert(world.vm(&row.0).await.cid().await.unwrap());
    }
    assert_eq!(cids, (1000..1050).collect());
    // The same name and the same port: one wins.
    let all = (0..50).map(|i| create("same".into(), 23_000 + i));
    let won = futures_util::future::join_all(all).await;
    assert_eq!(won.iter().filter(|r| r.is_ok()).count(), 1);
    assert!(won.iter().filter_map(|r| r.as_ref().err()).all(|e| matches!(e, Error::VmExists(_))));
    let all = (0..50).map(|i| create(format!("port-{i}"), 24_000));
    let won = futures_util::future::join_all(all).await;
    assert_eq!(won.iter().filter(|r| r.is_ok()).count(), 1);
    assert!(won.iter().filter_map(|r| r.as_ref().err()).all(|e| matches!(e, Error::PortInUse(_))));
    assert_eq!(world.vm_files().len(), 52);
}

/// Target: 20 ms.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_vms_are_listed_fast() {
    let mut world = World::new().await;
    world.create_stopped("template", &[]).await.unwrap();
    world.kill_teepod().await;
    let vms = world.path("state/vms");
    let record = std::fs::read_to_string(vms.join("template/record.json")).unwrap();
    let id = |i: u32| format!("00000000-0000-4000-8000-{i:012}");
    let old: serde_json::Value = serde_json::from_str(&record).unwrap();
    let old_id = old["data"]["id"].as_str().unwrap();
    for i in 1..1000_u32 {
        let directory = vms.join(format!("vm-{i}"));
        std::fs::create_dir(&directory).unwrap();
        let text = record
            .replace("\"template\"", &format!("\"vm-{i}\""))
            .replace(old_id, &id(i))
            .replace("\"cid\": 1000", &format!("\"cid\": {}", 1000 + i));
        std::fs::write(directory.join("record.json"), text).unwrap();
        std::fs::copy(vms.join("template/config.tar"), directory.join("config.tar")).unwrap();
    }
    let begun = Instant::now();
    world.start_teepod().await;
    let start = begun.elapsed();
    assert_eq!(world.manager.list_vms().await.unwrap().len(), 1000);
    let mut times = Vec::new();
    for _ in 0..11 {
        // From call to reply; what a debug build of the client needs to decode it is not teepod's.
        let begun = Instant::now();
        world.manager.inner().call_method("ListVms", &()).await.unwrap();
        times.push(begun.elapsed());
    }
    times.sort();
    let pid = world.teepod.as_ref().unwrap().0.id();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let rss = status.lines().find(|l| l.starts_with("VmRSS")).unwrap_or_default();
    println!("1,000 VMs: start {start:?}, ListVms median {:?}, worst {:?}, {rss}", times[5], times[10]);
    // The figure is for the log; a busy machine and a debug build only must not be out of all proportion.
    assert!(times[5] < Duration::from_millis(200), "{times:?}");
}
