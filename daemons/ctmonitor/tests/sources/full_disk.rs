// SPDX-License-Identifier: Apache-2.0
//! No space for alerts and places.

use crate::certs::issue;
use crate::crtsh::Crtsh;
use crate::world::{NAMES, OURS, THEIRS, World, ids, keys, search};
use dstack_ctmonitor::engine::Refusal;
use dstack_testing::disk::SmallDisk;

#[tokio::test]
async fn a_full_disk_is_told_and_loses_no_alert() {
    let Some(disk) = SmallDisk::new(64) else { return };
    let crtsh = Crtsh::start().await;
    crtsh.list(1, issue(&OURS, &NAMES, 1, 0, false));
    let open = || {
        let mut world = World::at(disk.path(), vec![search(&crtsh.server.url, false, 9)]);
        let (told, heard) = (Vec::new(), world.told.take());
        (world, told, heard.unwrap())
    };
    let (world, mut told, mut heard) = open();
    assert!(world.check().await.troubles.is_empty());
    disk.fill();
    crtsh.list(2, issue(&THEIRS, &NAMES, 2, 0, false));
    let refused = world.try_check().await.unwrap_err();
    assert!(matches!(refused, Refusal::State(_)), "{refused:?}");
    let said = world.engine.view().check.error;
    assert!(refused.to_string().contains("No space left") && said.contains("No space left"), "{said}");
    // Nobody is kept in the dark meanwhile.
    while let Ok(alert) = heard.try_recv() {
        told.push(alert);
    }
    assert_eq!(ids(&told), keys(&[&THEIRS]));
    // A kill now, and then space.
    let (world, ..) = open();
    assert!(world.engine.alerts().is_empty());
    disk.clear();
    assert_eq!(ids(&world.check().await.new_alerts), keys(&[&THEIRS]));
    assert_eq!((world.engine.view().check.error.as_str(), world.engine.view().open), ("", 1));
    assert!(world.check().await.new_alerts.is_empty(), "it is kept now");
    assert_eq!(ids(&open().0.engine.alerts()), keys(&[&THEIRS]));
}
