// SPDX-License-Identifier: Apache-2.0
//! Units of dstack that have failed, whichever they are.

use super::Check;
use crate::client::Client;
use crate::init::systemd::Systemd;

const NAME: &str = "unit";
/// Those with a check of their own.
const CHECKED: [&str; 2] = ["dstack-teepod.socket", "dstack-teepod.service"];

/// One line for each failed unit.
pub async fn failed(client: &Client) -> Vec<Check> {
    let names = match Systemd::new(&client.connection).await {
        Ok(systemd) => systemd.failed("dstack-*").await,
        Err(failure) => Err(failure),
    };
    match names {
        Ok(names) => {
            names.iter().filter(|name| !CHECKED.contains(&name.as_str())).map(|n| judge(n)).collect()
        }
        Err(failure) => {
            vec![Check::bad(
                NAME,
                format!("systemd does not answer: {}", failure.message),
                "is systemd running?",
            )]
        }
    }
}

/// A VM may fail and the host be well.
fn judge(name: &str) -> Check {
    let message = format!("{name} has failed");
    if let Some(vm) = name.strip_prefix("dstack-vm@").and_then(|name| name.strip_suffix(".service")) {
        return Check::warning(
            NAME,
            message,
            format!("see why: dstackctl vm show {vm}; dstackctl vm logs {vm}"),
        );
    }
    let remedy = format!("see why: journalctl -u {name} -n 50; then: systemctl reset-failed {name}");
    Check::bad(NAME, message, remedy)
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn a_failed_unit_is_bad_and_a_failed_vm_is_the_vms_affair() {
        for name in ["dstack-certbot.service", "dstack-tproxy-rpc.socket", "dstack-vm-net@x.service"] {
            let check = judge(name);
            assert!(check.status == Status::Bad && check.message.contains(name), "{check:?}");
        }
        let vm = judge("dstack-vm@hello.service");
        assert!(vm.status == Status::Warning, "{vm:?}");
        assert!(vm.remedy.unwrap_or_default().contains("dstackctl vm show hello"));
    }
}
