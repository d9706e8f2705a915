// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;
use crate::errors::Exit;

const TEST: &str = "test:0011223344556677";

#[test]
fn t04_keys_that_no_vm_here_could_use_are_not_made_unasked() {
    for (label, has_tdx, answer, good) in [
        ("intel", true, None, true),
        ("intel", false, None, false),
        ("intel", false, Some(Realm::Intel), true),
        (TEST, false, None, true),
        (TEST, true, None, false),
        (TEST, true, Some(Realm::Test), true),
    ] {
        let thought = think(label, has_tdx, answer);
        assert_eq!(thought == Thought::Good, good, "{label} {has_tdx} {answer:?}");
        let agreed = agree(label, thought, false);
        assert_eq!(agreed.is_ok(), good);
        if let Err(failure) = agreed {
            assert_eq!(failure.exit, Exit::Usage);
            assert!(
                failure.message.starts_with("realm: ") && failure.hint.unwrap().contains("dstack-testroot")
            );
        }
    }
}

#[test]
fn t04_an_answer_of_another_realm_than_the_machines_is_refused_with_the_package() {
    for (label, answer, remedy) in
        [("intel", Realm::Test, TRIAL), (TEST, Realm::Intel, "apt purge dstack-testroot")]
    {
        for has_tdx in [true, false] {
            let Thought::Contrary(failure) = think(label, has_tdx, Some(answer)) else { panic!("{label}") };
            assert!(failure.hint.unwrap().contains(remedy));
        }
    }
}

#[test]
fn two_realms_have_a_way_out_that_is_not_the_way_in() {
    assert!(reunite("intel").contains("apt install dstack-testroot"));
    assert!(reunite(TEST).contains("apt purge dstack-testroot"));
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../man/dstack-setup.7");
    let page = std::fs::read_to_string(page).unwrap().replace("\\-", "-");
    for part in [
        ".SH TROUBLESHOOTING",
        "/etc/credstore.encrypted/kmsroot",
        "/var/lib/dstack/kms",
        "dstackctl kms untrust",
    ] {
        assert!(page.contains(part), "{part}");
    }
}
