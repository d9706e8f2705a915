// SPDX-License-Identifier: Apache-2.0
//! Guest images: directories `<name>-<version>`, imported whole and checked, never changed afterwards.

use dstack_core::ids::ImageName;
use dstack_core::image::{ImageError, Manifest, Sha256Sum};
use dstack_core::limits::IMAGE_METADATA_MAX;
use rustix::fs::{AtFlags, Mode, OFlags, statat};
use sha2::{Digest, Sha256};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Largest file of an image, bytes.
pub const FILE_MAX: u64 = 64 * 1024 * 1024 * 1024;
const TEMPORARY: &str = ".#tmp-";
const METADATA: &str = "metadata.json";
const SUMS: &str = "sha256sum.txt";

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    /// There is none of that name.
    #[error("there is no image {0}")]
    Absent(ImageName),
    /// Its texts are not valid.
    #[error(transparent)]
    Invalid(#[from] ImageError),
    /// A file cannot be read or written.
    #[error("{name}: {error}")]
    Io {
        /// The file.
        name: String,
        /// Why.
        error: io::Error,
    },
    /// A file is not what `sha256sum.txt` says.
    #[error("{0} does not have the sum of sha256sum.txt; get the image again")]
    Sum(String),
    /// A file is no regular file, or too large.
    #[error("{0} is not a regular file of at most 64 GiB")]
    NotAFile(String),
    /// It is there already, with other content.
    #[error(
        "image {0} is there already with other content; remove it first, or build the new one with a new version"
    )]
    Exists(ImageName),
    /// The import was canceled.
    #[error("the import was canceled")]
    Canceled,
}

impl ImagesError {
    fn at(name: &str) -> impl FnOnce(io::Error) -> Self {
        let name = name.to_owned();
        move |error| Self::Io { name, error }
    }

    /// Whether the file system had no room.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Io { error, .. }
            if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

/// An imported image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Directory name.
    pub name: ImageName,
    /// Its parsed texts.
    pub manifest: Manifest,
    /// Size of all files, bytes.
    pub size: u64,
}

/// The directory of all images.
#[derive(Debug, Clone)]
pub struct Images {
    root: PathBuf,
}

impl Images {
    /// The images below this directory.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The directory of an image.
    #[must_use]
    pub fn directory(&self, name: &ImageName) -> PathBuf {
        self.root.join(name.as_str())
    }

    /// Removes what a killed import left. No directory at all is no error.
    ///
    /// # Errors
    /// When a left-over cannot be removed.
    pub fn sweep(&self) -> io::Result<usize> {
        let mut swept = 0;
        for name in self.names()? {
            if name.starts_with(TEMPORARY) {
                fs::remove_dir_all(self.root.join(name))?;
                swept += 1;
            }
        }
        Ok(swept)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        entries.map(|e| Ok(e?.file_name().to_string_lossy().into_owned())).collect()
    }

    /// All usable images, by name. An unusable one is logged.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn list(&self) -> io::Result<Vec<Image>> {
        let mut images = Vec::new();
        for name in self.names()?.iter().filter_map(|n| n.parse::<ImageName>().ok()) {
            match self.get(&name) {
                Ok(image) => images.push(image),
                Err(error) => tracing::warn!("image {name} cannot be used: {error}"),
            }
        }
        images.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(images)
    }

    /// One image. Its files' sums were checked at import; here only their texts and sizes are read.
    ///
    /// # Errors
    /// [`ImagesError`] when it is absent or not usable.
    pub fn get(&self, name: &ImageName) -> Result<Image, ImagesError> {
        let directory = match File::open(self.directory(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ImagesError::Absent(name.clone()));
            }
            other => other.map_err(ImagesError::at(name.as_str()))?,
        };
        let manifest = manifest(directory.as_fd())?;
        let mut size = 0;
        for file in manifest.sums.keys() {
            let stat = statat(&directory, file.as_str(), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|e| ImagesError::at(file)(e.into()))?;
            size += u64::try_from(stat.st_size).unwrap_or_default();
        }
        Ok(Image { name: name.clone(), manifest, size })
    }

    /// The image for VMs that name none: the last by name that is no development image, else the last.
    #[must_use]
    pub fn newest(&self) -> Option<ImageName> {
        let images = self.list().ok()?;
        let production = images.iter().rev().find(|i| !i.manifest.metadata.is_dev);
        production.or(images.last()).map(|i| i.name.clone())
    }

    /// Copies the image in an open directory, checking every file against its sum; importing the same image again does
    /// nothing. `progress` gets bytes done and in all, and stops the import by returning `false`.
    ///
    /// # Errors
    /// [`ImagesError`]; nothing is left behind then.
    pub fn import(
        &self,
        directory: BorrowedFd<'_>,
        mut progress: impl FnMut(u64, u64) -> bool,
    ) -> Result<ImageName, ImagesError> {
        let manifest = manifest(directory)?;
        let name: ImageName = manifest.metadata.directory().parse().map_err(|_| {
            let text = manifest.metadata.directory();
            ImageError::Field { field: "name", text, expected: "use at most 64 characters with the version" }
        })?;
        if let Ok(there) = self.get(&name) {
            return if there.manifest == manifest { Ok(name) } else { Err(ImagesError::Exists(name)) };
        }
        let temporary = self.root.join(format!("{TEMPORARY}{}", uuid::Uuid::new_v4().simple()));
        let copied = self.copy(directory, &manifest, &temporary, &name, &mut progress);
        if copied.is_err() {
            // The first error is the one to tell; a left-over is swept at the next start.
            drop(fs::remove_dir_all(&temporary));
        }
        copied.map(|()| name)
    }

    fn copy(
        &self,
        from: BorrowedFd<'_>,
        manifest: &Manifest,
        temporary: &Path,
        name: &ImageName,
        progress: &mut impl FnMut(u64, u64) -> bool,
    ) -> Result<(), ImagesError> {
        create_directory(temporary).map_err(ImagesError::at(&temporary.display().to_string()))?;
        let mut sources = Vec::new();
        let mut total = 0;
        for (file, sum) in &manifest.sums {
            let (source, size) = open(from, file)?;
            total += size;
            sources.push((file, *sum, source));
        }
        let mut done = 0;
        for (file, sum, source) in sources {
            let target = create(&temporary.join(file)).map_err(ImagesError::at(file))?;
            let mut advance = |bytes: u64| {
                done += bytes;
                progress(done, total)
            };
            copy_checked(file, source, target, sum, &mut advance)?;
        }
        let sums = read_text(from, SUMS)?;
        let mut target = create(&temporary.join(SUMS)).map_err(ImagesError::at(SUMS))?;
        target.write_all(&sums).and_then(|()| target.sync_all()).map_err(ImagesError::at(SUMS))?;
        self.publish(temporary, manifest, name)
    }

    /// The texts are read again from the copy, so that a source that changes meanwhile gains nothing.
    fn publish(&self, temporary: &Path, expected: &Manifest, name: &ImageName) -> Result<(), ImagesError> {
        let copy = File::open(temporary).map_err(ImagesError::at(name.as_str()))?;
        if manifest(copy.as_fd())? != *expected {
            return Err(ImagesError::Sum(SUMS.to_owned()));
        }
        let target = self.directory(name);
        let renamed = copy.sync_all().and_then(|()| fs::rename(temporary, &target));
        match renamed {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                return Err(ImagesError::Exists(name.clone()));
            }
            other => other.map_err(ImagesError::at(name.as_str()))?,
        }
        dstack_service::state::sync_parent(&target).map_err(ImagesError::at(name.as_str()))
    }

    /// Removes an image.
    ///
    /// # Errors
    /// [`ImagesError`] when it is absent or cannot be removed.
    pub fn remove(&self, name: &ImageName) -> Result<(), ImagesError> {
        let temporary = self.root.join(format!("{TEMPORARY}{}", uuid::Uuid::new_v4().simple()));
        match fs::rename(self.directory(name), &temporary) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ImagesError::Absent(name.clone()));
            }
            other => other.map_err(ImagesError::at(name.as_str()))?,
        }
        fs::remove_dir_all(&temporary).map_err(ImagesError::at(name.as_str()))
    }
}

fn manifest(directory: BorrowedFd<'_>) -> Result<Manifest, ImagesError> {
    Ok(Manifest::parse(&read_text(directory, METADATA)?, &read_text(directory, SUMS)?)?)
}

/// Opens a regular file by its plain name, following no link.
fn open(directory: BorrowedFd<'_>, name: &str) -> Result<(File, u64), ImagesError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = rustix::fs::openat(directory, name, flags, Mode::empty()).map_err(|e| match e {
        rustix::io::Errno::LOOP => ImagesError::NotAFile(name.to_owned()),
        _ => ImagesError::at(name)(e.into()),
    })?;
    let file = File::from(fd);
    let metadata = file.metadata().map_err(ImagesError::at(name))?;
    if !metadata.is_file() || metadata.len() > FILE_MAX {
        return Err(ImagesError::NotAFile(name.to_owned()));
    }
    Ok((file, metadata.len()))
}

fn read_text(directory: BorrowedFd<'_>, name: &str) -> Result<Vec<u8>, ImagesError> {
    let (file, _) = open(directory, name)?;
    let mut bytes = Vec::new();
    file.take(IMAGE_METADATA_MAX as u64 + 1).read_to_end(&mut bytes).map_err(ImagesError::at(name))?;
    Ok(bytes)
}

/// VMs read it as users of their own, whatever the daemon's umask is.
fn create(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    Ok(file)
}

fn create_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o755).create(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o755))
}

fn copy_checked(
    name: &str,
    mut from: File,
    mut to: File,
    sum: Sha256Sum,
    advance: &mut impl FnMut(u64) -> bool,
) -> Result<(), ImagesError> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let length = from.read(&mut buffer).map_err(ImagesError::at(name))?;
        let chunk = buffer.get(..length).unwrap_or_default();
        if chunk.is_empty() {
            break;
        }
        hasher.update(chunk);
        to.write_all(chunk).map_err(ImagesError::at(name))?;
        if !advance(chunk.len() as u64) {
            return Err(ImagesError::Canceled);
        }
    }
    if <[u8; 32]>::from(hasher.finalize()) != sum {
        return Err(ImagesError::Sum(name.to_owned()));
    }
    to.sync_all().map_err(ImagesError::at(name))
}

#[cfg(test)]
#[path = "images_tests.rs"]
mod tests;
