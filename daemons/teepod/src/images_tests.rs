// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]
use super::*;

fn source(version: &str, is_dev: bool) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let metadata = format!(
        r#"{{"name":"dstack","version":"{version}","is_dev":{is_dev},"uki":"guest.efi","root":"root.img","root_hash":"{}"}}"#,
        "aa".repeat(32)
    );
    fs::write(dir.path().join("metadata.json"), metadata).unwrap();
    fs::write(dir.path().join("guest.efi"), "uki").unwrap();
    fs::write(dir.path().join("root.img"), vec![7; 600_000]).unwrap();
    sums(dir.path());
    dir
}

fn sums(dir: &Path) {
    let line = |name: &str| {
        let digest = Sha256::digest(fs::read(dir.join(name)).unwrap());
        format!("{}  {name}\n", hex::encode(digest))
    };
    let text: String = ["guest.efi", "metadata.json", "root.img"].map(line).concat();
    fs::write(dir.join(SUMS), text).unwrap();
}

fn import(images: &Images, from: &Path) -> Result<ImageName, ImagesError> {
    images.import(File::open(from).unwrap().as_fd(), |_, _| true)
}

fn images() -> (tempfile::TempDir, Images) {
    let root = tempfile::tempdir().unwrap();
    let images = Images::new(root.path());
    (root, images)
}

#[test]
fn import_list_remove() {
    // As in teepod's unit; VMs must be able to read images all the same.
    rustix::process::umask(rustix::fs::Mode::from_bits_truncate(0o077));
    let (root, images) = images();
    let from = source("0.1.0", false);
    let name = import(&images, from.path()).unwrap();
    assert_eq!(name.as_str(), "dstack-0.1.0");
    let mode = |path: &str| fs::metadata(root.path().join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("dstack-0.1.0"), mode("dstack-0.1.0/root.img")), (0o755, 0o644));
    assert_eq!(import(&images, from.path()).unwrap(), name, "again is fine");
    import(&images, source("0.2.0", true).path()).unwrap();
    let list = images.list().unwrap();
    assert_eq!(list.len(), 2);
    assert!(list.iter().all(|i| i.size > 600_000));
    assert_eq!(images.newest().unwrap(), name, "no development image by default");
    fs::write(from.path().join("root.img"), "other").unwrap();
    sums(from.path());
    assert!(matches!(import(&images, from.path()), Err(ImagesError::Exists(_))));
    images.remove(&name).unwrap();
    assert!(matches!(images.remove(&name), Err(ImagesError::Absent(_))));
    assert!(matches!(images.get(&name), Err(ImagesError::Absent(_))));
}

#[test]
fn p26_bad_images_are_named_and_leave_nothing() {
    let (root, images) = images();
    let check = |change: &dyn Fn(&Path), part: &str| {
        let from = source("0.1.0", false);
        change(from.path());
        let error = import(&images, from.path()).unwrap_err().to_string();
        assert!(error.contains(part), "{part} in {error}");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0, "{part}");
    };
    check(&|d| fs::write(d.join("root.img"), "changed").unwrap(), "root.img does not have the sum");
    check(&|d| fs::remove_file(d.join("guest.efi")).unwrap(), "guest.efi");
    check(&|d| fs::remove_file(d.join(SUMS)).unwrap(), SUMS);
    check(&|d| fs::write(d.join("metadata.json"), "{}").unwrap(), "metadata.json");
    let link = |d: &Path| {
        fs::remove_file(d.join("root.img")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", d.join("root.img")).unwrap();
    };
    check(&link, "root.img is not a regular file");
    let from = source("0.1.0", false);
    let canceled = images.import(File::open(from.path()).unwrap().as_fd(), |_, _| false);
    assert!(matches!(canceled, Err(ImagesError::Canceled)));
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
}

#[test]
fn left_overs_are_swept_and_broken_ones_skipped() {
    let (root, images) = images();
    fs::create_dir(root.path().join(".#tmp-x")).unwrap();
    fs::create_dir(root.path().join("broken-1")).unwrap();
    assert_eq!(images.sweep().unwrap(), 1);
    assert!(images.list().unwrap().is_empty());
    assert_eq!(Images::new(Path::new("/nonexistent")).sweep().unwrap(), 0);
}
