// SPDX-License-Identifier: Apache-2.0
//! The files of all daemons: whether they are TOML that can be read. Which keys there are is each daemon's own business; one
//! that refuses a key does not start, see [`super::units`].

use super::Check;
use dstack_service::config::{self, Directories};
use toml::Table;

const NAME: &str = "configuration";
/// Daemons with a file of their own.
const DAEMONS: [&str; 5] = ["teepod", "kms", "tproxy", "certbot", "ct-monitor"];

/// One line when all is well, and one for each daemon that cannot read its files.
#[must_use]
pub fn check(directories: &Directories) -> Vec<Check> {
    let broken = DAEMONS.into_iter().filter_map(|daemon| {
        let error = match daemon {
            // Its keys are known here.
            "teepod" => config::load::<super::Config>(directories, daemon).err(),
            _ => config::load::<Table>(directories, daemon).err(),
        }?;
        let remedy = format!("correct the file, then: systemctl restart dstack-{daemon}");
        Some(Check::bad(NAME, error.to_string().trim_end().to_owned(), remedy))
    });
    let broken: Vec<Check> = broken.collect();
    if broken.is_empty() {
        let files = DAEMONS.map(|daemon| format!("{daemon}.toml")).join(", ");
        return vec![Check::good(NAME, format!("can be read: {files}"))];
    }
    broken
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn a_broken_file_of_any_daemon_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let directories =
            Directories { vendor: directory.path().join("vendor"), operator: directory.path().to_owned() };
        assert!(check(&directories).iter().all(|check| check.status == Status::Good));
        for daemon in DAEMONS {
            let dropins = directory.path().join(format!("{daemon}.toml.d"));
            std::fs::create_dir(&dropins).unwrap();
            let file = dropins.join("50-local.toml");
            std::fs::write(&file, "a = \n").unwrap();
            let checks = check(&directories);
            assert!(checks.len() == 1 && checks[0].status == Status::Bad, "{checks:?}");
            assert!(checks[0].message.contains(&*file.to_string_lossy()), "{checks:?}");
            assert!(checks[0].remedy.as_ref().unwrap().ends_with(&format!("restart dstack-{daemon}")));
            std::fs::remove_file(&file).unwrap();
        }
    }
}
