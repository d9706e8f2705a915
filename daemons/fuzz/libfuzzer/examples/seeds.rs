// SPDX-License-Identifier: Apache-2.0
//! `seeds DIRECTORY`: writes the samples of each target into `DIRECTORY/<target>`, where libFuzzer begins with them.

fn main() -> std::io::Result<()> {
    let directory = std::path::PathBuf::from(std::env::args_os().nth(1).unwrap_or_else(|| "corpus".into()));
    for target in dstack_fuzz::TARGETS {
        let place = directory.join(target.name);
        std::fs::create_dir_all(&place)?;
        for (number, sample) in (target.samples)().iter().enumerate() {
            std::fs::write(place.join(format!("sample-{number}")), sample)?;
        }
    }
    Ok(())
}
