// SPDX-License-Identifier: Apache-2.0
//! A TD report (TDREPORT_STRUCT of the TDX module ABI, 1024 bytes) from registers.
//!
//! It has report data and the TD's registers at their places, and zeros elsewhere. The MAC, by which the same machine's
//! quoting enclave knows a report, is zero: a quote is what can be verified.

use dstack_core::quote_sim_wire::Registers;

/// Length, bytes.
pub const LENGTH: usize = 1024;
const REPORT_TYPE_TDX: u8 = 0x81;
const REPORT_DATA: usize = 128;
const MR_TD: usize = 512 + 16;
const MR_CONFIG_ID: usize = MR_TD + 48;
const RTMR0: usize = MR_TD + 4 * 48;

/// A report over the report data.
#[must_use]
pub fn compose(report_data: &[u8; 64], registers: &Registers) -> Vec<u8> {
    let mut report = vec![0; LENGTH];
    let rtmrs = [registers.rtmr0, registers.rtmr1, registers.rtmr2, registers.rtmr3];
    put(&mut report, 0, &[REPORT_TYPE_TDX]);
    put(&mut report, REPORT_DATA, report_data);
    put(&mut report, MR_TD, &registers.mrtd);
    put(&mut report, MR_CONFIG_ID, &registers.mr_config_id);
    put(&mut report, RTMR0, rtmrs.as_flattened());
    report
}

fn put(report: &mut [u8], at: usize, bytes: &[u8]) {
    report.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_at_the_places_of_the_abi() {
        let registers = Registers {
            mrtd: [1; 48],
            rtmr0: [2; 48],
            rtmr1: [3; 48],
            rtmr2: [4; 48],
            rtmr3: [5; 48],
            mr_config_id: [6; 48],
        };
        let report = compose(&[9; 64], &registers);
        assert_eq!(report.len(), LENGTH);
        for (at, value, length) in [(128, 9, 64), (528, 1, 48), (576, 6, 48), (720, 2, 48), (864, 5, 48)] {
            assert!(report[at..at + length].iter().all(|b| *b == value), "{at}");
            assert!(report[at - 1] != value && report[at + length] != value, "{at}");
        }
    }
}
