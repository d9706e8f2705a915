// SPDX-License-Identifier: Apache-2.0
//! Realms of root keys that do not fit the machine.

use crate::mock::bus::Bus;
use crate::mock::kms::Kms;
use crate::mock::run;
use crate::mock::teepod::Teepod;

const MIXED: &str = "the root keys are of realm intel, but the trust roots of this machine make it test:00; restore \
                     /etc/dstack/trust.d and restart dstack-kms";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t04_a_machine_without_tdx_makes_no_keys_for_tdx_unless_told_to() {
    let bus = Bus::start();
    let (_teepod, kms) = (Teepod::start(&bus).await, Kms::new());
    {
        let mut state = kms.state.lock().unwrap();
        (state.bootstrapped, state.realm) = (false, Some("intel"));
    }
    let _connection = kms.start(&bus).await;
    let refused = run(&bus.address, &["kms", "bootstrap", "kms.test"]).await;
    assert_eq!(refused.code, 2, "{refused:?}");
    for part in ["no TDX", "realm intel for good", "apt install dstack-testroot", "--realm intel"] {
        assert!(refused.err.contains(part), "{part}: {refused:?}");
    }
    let contrary = run(&bus.address, &["kms", "bootstrap", "kms.test", "--realm", "test"]).await;
    assert!(contrary.code == 2 && contrary.err.contains("apt install dstack-testroot"), "{contrary:?}");
    assert!(!kms.state.lock().unwrap().bootstrapped);
    let told = run(&bus.address, &["kms", "bootstrap", "kms.test", "--realm", "intel"]).await;
    assert!(told.code == 0 && kms.state.lock().unwrap().bootstrapped, "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t04_keys_and_trust_root_of_two_realms_are_named_with_the_way_out() {
    let bus = Bus::start();
    let (_teepod, kms) = (Teepod::start(&bus).await, Kms::new());
    kms.state.lock().unwrap().refused = Some(MIXED);
    let _connection = kms.start(&bus).await;
    for command in [&["kms", "status"][..], &["doctor"]] {
        let run = run(&bus.address, command).await;
        let said = format!("{}{}", run.out, run.err);
        assert!(run.code == 1 && !said.contains("cannot be read; are both"), "{run:?}");
        for part in ["of realm intel", "apt purge dstack-testroot", "dstack-setup(7), TROUBLESHOOTING"] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}
