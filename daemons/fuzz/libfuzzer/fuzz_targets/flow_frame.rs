// SPDX-License-Identifier: Apache-2.0
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dstack_fuzz::ingress::flow_frame(bytes));
