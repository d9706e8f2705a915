// SPDX-License-Identifier: Apache-2.0
//! Values that real TDs quoted, published by others: two vCPUs, 2 GiB, QEMU 8.2, OVMF before `stable202505`.
#![allow(clippy::unwrap_used)]

use super::tdvf::Tdvf;
use super::tdvf::tests::ovmf;
use super::{Register, event_type, replay, rtmr0, sha384};
use crate::event_log::Digest;

fn digest(hex: &str) -> Digest {
    hex::decode(hex).unwrap().try_into().unwrap()
}

const TD_HOB: &str =
    "0b8772e5b0b41b83e6044a68397e02f49fb47066b4fbe4917ea2c45c64f323fdacbb37948f821ebaf8bc9c938ba8a749";
/// Another firmware's volume than any that is at hand, so its digest is given.
const CFV: &str =
    "344bc51c980ba621aaa00da3ed7436f7d6e549197dfe699515dfa2c6583d95e6412af21c097d473155875ffd561d6790";
const ACPI: [&str; 3] = [
    "095d04cf26fe03aef6e3561fa24c1aa1cea93f4aeaf563b1f9f7616184c53454875925759434769cec2490acb563a337",
    "8d9a4d4777a1bc77ecd9d8d37a4628129a80052a510320159a20a923bd07a0e90d8d1f2e1ebf088992b25f0d0fa672ef",
    "3070721e169bc41884724cb0e6b3082e1baf249083d8b389181ba50b9afa951057876c380b8870e8c2facf2eff67a2b6",
];
const RTMR0: &str =
    "f8438db36b96f85d8752ff7f24a89ec05c79ec9eda2ba732c897fb970ca429365b7471b1c054cb84f17b1c2b23ba6640";
/// Events 2 to 12 but ACPI's: Secure Boot's variables, the separator, boot variables.
const FIXED: [&str; 8] = [
    "9dc3a1f80bcec915391dcda5ffbb15e7419f77eab462bbf72b42166fb70d50325e37b36f93537a863769bcf9bedae6fb",
    "6f2e3cbc14f9def86980f5f66fd85e99d63e69a73014ed8a5633ce56eca5b64b692108c56110e22acadcef58c3250f1b",
    "d607c0efb41c0d757d69bca0615c3a9ac0b1db06c557d992e906c6b7dee40e0e031640c7bfd7bcd35844ef9edeadc6f9",
    "08a74f8963b337acb6c93682f934496373679dd26af1089cb4eaf0c30cf260a12e814856385ab8843e56a9acea19e127",
    "18cc6e01f0c6ea99aa23f8a280423e94ad81d96d0aeb5180504fc0f7a40cb3619dd39bd6a95ec1680a86ed6ab0f9828d",
    "394341b7182cd227c5c6b07ef8000cdfd86136c4292b8e576573ad7ed9ae41019f5818b4b971c9effc60e1ad9f1289f0",
    "1dd6f7b457ad880d840d41c961283bab688e94e4b59359ea45686581e90feccea3c624b1226113f824f315eb60ae0a7c",
    "23ada07f5261f12f34a0bd8e46760962d6b4d576a416f1fea1c64bc656b1d28eacf7047ae6e967c58fd2a98bfa74c298",
];

#[test]
fn rtmr0_is_the_one_that_a_real_td_quoted() {
    let image = ovmf();
    let acpi = ACPI.map(digest);
    let [loader, rsdp, tables] = acpi;
    let acpi = rtmr0::Acpi { loader, rsdp, tables };
    let tdvf = Tdvf::parse(&image).unwrap();
    let mut events = rtmr0::events(&tdvf, 2 << 30, Some(&acpi)).unwrap();
    assert_eq!(events.first().unwrap().digest, digest(TD_HOB), "memory map");
    let fixed = events.iter().skip(2).filter(|e| e.event_type != event_type::PLATFORM_CONFIG);
    let fixed: Vec<String> = fixed.map(|e| hex::encode(e.digest)).collect();
    assert_eq!(fixed, FIXED);
    events.get_mut(1).unwrap().digest = digest(CFV);
    assert_eq!(replay(&events, Register::Rtmr0), digest(RTMR0));
}

#[test]
fn the_words_of_rtmr1_are_those_of_a_real_td() {
    let words = [
        (
            "Calling EFI Application from Boot Option",
            "77a0dab2312b4e1e57a84d865a21e5b2ee8d677a21012ada819d0a98988078d3d740f6346bfe0abaa938ca20439a8d71",
        ),
        (
            "Exit Boot Services Invocation",
            "214b0bef1379756011344877743fdc2a5382bac6e70362d624ccf3f654407c1b4badf7d8f9295dd3dabdef65b27677e0",
        ),
        (
            "Exit Boot Services Returned with Success",
            "0a2e01c85deae718a530ad8c6d20a84009babe6c8989269e950d8cf440c6e997695e64d455c4174a652cd080f6230b74",
        ),
    ];
    for (text, expected) in words {
        assert_eq!(sha384(text.as_bytes()), digest(expected), "{text}");
    }
}
