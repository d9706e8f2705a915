// SPDX-License-Identifier: Apache-2.0
//! dstack-kms-seal: the root oneshot that seals new root keys. See `dstack-kms(8)`.

use dstack_kms::{seal, vault};
use dstack_service::logging;
use std::path::Path;
use std::process::ExitCode;

const SOURCE: &str = "/run/dstack-kms";
const TARGET: &str = "/etc/credstore.encrypted";

fn main() -> ExitCode {
    let _level = logging::init("dstack-kms-seal");
    let mut arguments = std::env::args().skip(1);
    // The only argument is the kind of key, as `systemd-creds --with-key=` takes it.
    let (with_key, more) = (arguments.next().unwrap_or_else(|| "host".to_owned()), arguments.next());
    if more.is_some() || !with_key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'-') {
        eprintln!("dstack-kms-seal: takes one argument, the kind of key; see systemd-creds(1), --with-key=");
        return ExitCode::from(2);
    }
    let (source, target) =
        (Path::new(SOURCE).join(vault::UNSEALED), Path::new(TARGET).join(vault::CREDENTIAL));
    match seal::run(&source, &target, vault::CREDENTIAL, &with_key) {
        Ok(()) => {
            tracing::info!("the root keys are sealed in {}", target.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}
