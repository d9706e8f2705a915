// SPDX-License-Identifier: Apache-2.0
//! Measures images, each once: a UKI is some hundred megabytes of SHA-384.

use dstack_core::ids::ImageName;
use dstack_core::image::Manifest;
use dstack_core::limits::IMAGE_METADATA_MAX;
use dstack_core::measure::mrtd::PageOrder;
use dstack_core::measure::{Booted, FIRMWARE_MAX, Platform, UKI_MAX};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::Mutex;

/// Most images whose measurement is kept.
const KEPT: usize = 16;

/// A file as it was when it was measured: another one in its place is measured again.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    path: PathBuf,
    device: u64,
    inode: u64,
    length: u64,
    changed: (i64, i64),
}

impl Seen {
    fn now(path: PathBuf) -> Result<Self, String> {
        let found = std::fs::metadata(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let changed = (found.ctime(), found.ctime_nsec());
        Ok(Self { path, device: found.dev(), inode: found.ino(), length: found.size(), changed })
    }

    fn read(&self, limit: usize) -> Result<Vec<u8>, String> {
        let named = |e: std::io::Error| format!("{}: {e}", self.path.display());
        let file = File::open(&self.path).map_err(named)?;
        let limit = u64::try_from(limit).unwrap_or(u64::MAX);
        let mut bytes = Vec::with_capacity(usize::try_from(self.length.min(limit)).unwrap_or_default());
        file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(named)?;
        Ok(bytes)
    }
}

type Kept = ((Seen, Seen), Arc<Booted>);

/// Measurements of images.
#[derive(Debug)]
pub struct Measurer {
    images: PathBuf,
    firmware: PathBuf,
    /// Latest last. The lock is held while one is measured, so that VMs of one image wait for it together.
    kept: Mutex<Vec<Kept>>,
}

impl Measurer {
    /// Images are directories in `images`; `firmware` is what teepod boots those with that bring none.
    #[must_use]
    pub const fn new(images: PathBuf, firmware: PathBuf) -> Self {
        Self { images, firmware, kept: Mutex::const_new(Vec::new()) }
    }

    /// What an image of this name measures.
    ///
    /// # Errors
    /// A sentence when a file cannot be read or measured.
    pub async fn measure(&self, name: &str) -> Result<Arc<Booted>, String> {
        let (uki, firmware) = self.files(name)?;
        let mut kept = self.kept.lock().await;
        if let Some((_, booted)) = kept.iter().find(|(seen, _)| *seen == (uki.clone(), firmware.clone())) {
            return Ok(Arc::clone(booted));
        }
        let key = (uki.clone(), firmware.clone());
        let work = tokio::task::spawn_blocking(move || {
            let (uki, firmware) = (uki.read(UKI_MAX)?, firmware.read(FIRMWARE_MAX)?);
            Booted::of(&firmware, &uki, Platform::Simulated, PageOrder::OnePass).map_err(|e| e.to_string())
        });
        let booted = Arc::new(work.await.map_err(|e| e.to_string())??);
        if kept.len() >= KEPT {
            kept.remove(0);
        }
        kept.push((key, Arc::clone(&booted)));
        Ok(booted)
    }

    fn files(&self, name: &str) -> Result<(Seen, Seen), String> {
        let manifest = read_image(&self.images, name)?;
        let directory = self.images.join(name);
        let firmware = match &manifest.metadata.firmware {
            Some(own) => directory.join(own),
            None => self.firmware.clone(),
        };
        Ok((Seen::now(directory.join(&manifest.metadata.uki))?, Seen::now(firmware)?))
    }
}

/// The two texts that describe an image.
fn read_image(images: &Path, name: &str) -> Result<Manifest, String> {
    let name: ImageName = name.parse().map_err(|e| format!("{e}"))?;
    let directory = images.join(name.as_str());
    let read = |file: &str| {
        let path = directory.join(file);
        let mut bytes = Vec::new();
        let read =
            File::open(&path).and_then(|f| f.take(IMAGE_METADATA_MAX as u64 + 1).read_to_end(&mut bytes));
        read.map(|_| bytes).map_err(|e| format!("{}: {e}", path.display()))
    };
    Manifest::parse(&read("metadata.json")?, &read("sha256sum.txt")?).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small UKI.
    fn uki() -> Vec<u8> {
        let target = dstack_fuzz::TARGETS.iter().find(|t| t.name == "uki").unwrap();
        (target.samples)().remove(0)
    }

    fn image(images: &Path) -> PathBuf {
        let directory = images.join("dstack-1");
        std::fs::create_dir(&directory).unwrap();
        let hash = "ab".repeat(32);
        let metadata =
            format!(r#"{{"name":"dstack","version":"1","uki":"u","root":"r","root_hash":"{hash}"}}"#);
        std::fs::write(directory.join("metadata.json"), metadata).unwrap();
        let sums = ["metadata.json", "r", "u"].map(|name| format!("{}  {name}\n", "02".repeat(32))).concat();
        std::fs::write(directory.join("sha256sum.txt"), sums).unwrap();
        std::fs::write(directory.join("u"), uki()).unwrap();
        std::fs::write(images.join("firmware"), "bios").unwrap();
        directory
    }

    #[tokio::test]
    async fn an_image_is_measured_once_and_again_when_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let directory = image(dir.path());
        let measurer = Measurer::new(dir.path().to_owned(), dir.path().join("firmware"));
        let first = measurer.measure("dstack-1").await.unwrap();
        assert!(Arc::ptr_eq(&first, &measurer.measure("dstack-1").await.unwrap()), "kept");
        let changed = String::from_utf8_lossy(&uki()).into_owned();
        assert!(changed.contains("quiet ro"));
        let at = uki().windows(8).position(|w| w == b"quiet ro").unwrap();
        let mut other = uki();
        other.splice(at..at + 5, *b"noisy");
        std::fs::write(directory.join("new"), &other).unwrap();
        std::fs::rename(directory.join("new"), directory.join("u")).unwrap();
        let second = measurer.measure("dstack-1").await.unwrap();
        assert_ne!(first.entries, second.entries);
        assert_eq!(first.mrtd, second.mrtd);
        std::fs::write(dir.path().join("firmware"), "other bios").unwrap();
        assert_ne!(measurer.measure("dstack-1").await.unwrap().mrtd, second.mrtd);
        std::fs::remove_file(dir.path().join("firmware")).unwrap();
        assert!(measurer.measure("dstack-1").await.unwrap_err().contains("firmware"));
    }

    #[tokio::test]
    async fn p26_an_image_is_a_name_in_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let measurer = Measurer::new(dir.path().to_owned(), dir.path().join("firmware"));
        for bad in ["../etc", "/etc", "", "missing"] {
            assert!(measurer.measure(bad).await.is_err(), "{bad}");
        }
    }
}
