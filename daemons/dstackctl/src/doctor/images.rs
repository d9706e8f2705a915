// SPDX-License-Identifier: Apache-2.0
//! Guest images: whether there are any, and whether their files are what they were.

use super::{Check, Config};
use crate::client::Client;
use dstack_core::image::{Manifest, Sha256Sum};
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::Path;

/// Checks the images that teepod lists.
pub async fn check(client: &Client, config: &Config) -> Vec<Check> {
    let Ok(images) = client.manager.list_images().await else { return Vec::new() };
    if images.is_empty() {
        let remedy = "apt install dstack-guest-image; or: dstackctl image import DIRECTORY";
        return vec![Check::warning("image", "there is no guest image yet", remedy)];
    }
    let mut checks = Vec::new();
    for (name, version, ..) in images {
        let name = crate::image::full_name(&name, &version);
        let directory = config.image_path.join(&name);
        let shown = name.clone();
        let verdict = tokio::task::spawn_blocking(move || verify(&directory)).await;
        checks.push(judge(&shown, verdict.unwrap_or(Verdict::Hidden)));
    }
    checks
}

/// What the sums say.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Every file has its sum.
    Intact(usize),
    /// A file has another sum, or cannot be read, or the texts are wrong.
    Broken(String),
    /// This user may not read the files.
    Hidden,
}

fn judge(name: &str, verdict: Verdict) -> Check {
    match verdict {
        Verdict::Intact(files) => Check::good("image", format!("{name}: {files} files, all sums are right")),
        Verdict::Hidden => Check::good("image", format!("{name} is there (its sums are checked for root)")),
        Verdict::Broken(why) => Check::bad(
            "image",
            format!("{name}: {why}"),
            format!("dstackctl image remove {name}; then: apt install --reinstall dstack-guest-image"),
        ),
    }
}

fn verify(directory: &Path) -> Verdict {
    let read = |name: &str| std::fs::read(directory.join(name));
    let (metadata, sums) = match (read("metadata.json"), read("sha256sum.txt")) {
        (Ok(metadata), Ok(sums)) => (metadata, sums),
        (Err(e), _) | (_, Err(e)) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            return Verdict::Hidden;
        }
        (Err(e), _) | (_, Err(e)) => return Verdict::Broken(e.to_string()),
    };
    let manifest = match Manifest::parse(&metadata, &sums) {
        Ok(manifest) => manifest,
        Err(error) => return Verdict::Broken(error.to_string()),
    };
    for (name, expected) in &manifest.sums {
        match sum(&directory.join(name)) {
            Ok(sum) if sum == *expected => {}
            Ok(_) => return Verdict::Broken(format!("{name} has another sum")),
            Err(error) => return Verdict::Broken(format!("{name}: {error}")),
        }
    }
    Verdict::Intact(manifest.sums.len())
}

fn sum(path: &Path) -> std::io::Result<Sha256Sum> {
    let mut file = std::fs::File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let length = file.read(&mut buffer)?;
        match buffer.get(..length) {
            Some(bytes) if !bytes.is_empty() => hash.update(bytes),
            _ => return Ok(hash.finalize().into()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let metadata = format!(
            r#"{{"name":"dstack","version":"1","uki":"guest.efi","root":"root.img","root_hash":"{}"}}"#,
            "aa".repeat(32)
        );
        let mut sums = String::new();
        for (name, text) in [("metadata.json", metadata.as_str()), ("guest.efi", "uki"), ("root.img", "root")]
        {
            std::fs::write(directory.path().join(name), text).unwrap();
            let digest: Vec<String> = Sha256::digest(text).iter().map(|b| format!("{b:02x}")).collect();
            sums.push_str(&format!("{}  {name}\n", digest.concat()));
        }
        std::fs::write(directory.path().join("sha256sum.txt"), sums).unwrap();
        assert_eq!(verify(directory.path()), Verdict::Intact(3));
        std::fs::write(directory.path().join("root.img"), "toor").unwrap();
        assert_eq!(verify(directory.path()), Verdict::Broken("root.img has another sum".to_owned()));
        std::fs::remove_file(directory.path().join("root.img")).unwrap();
        assert!(matches!(verify(directory.path()), Verdict::Broken(_)));
        assert!(matches!(verify(Path::new("/nonexistent")), Verdict::Broken(_)));
    }
}
