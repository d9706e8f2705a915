// SPDX-License-Identifier: Apache-2.0
//! Reading records: the journal, and a list for tests.

use super::names::Target;
use super::record::Record;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use systemd::journal::{Journal, OpenDirectoryOptions, OpenOptions};

/// Largest field that is read whole, bytes; Docker's pieces are 16 KiB.
const FIELD_MAX: usize = 1024 * 1024;
/// Most container names that the journal is asked for.
const NAMES_MAX: usize = 4096;

/// A cursor over the records of one container, oldest to newest.
pub trait Reader {
    /// Goes before the first record.
    ///
    /// # Errors
    /// Those of the journal.
    fn seek_head(&mut self) -> io::Result<()>;

    /// Goes after the last record; call [`Self::previous`] next.
    ///
    /// # Errors
    /// Those of the journal.
    fn seek_tail(&mut self) -> io::Result<()>;

    /// Goes before the first record received at or after this time (microseconds since 1970).
    ///
    /// # Errors
    /// Those of the journal.
    fn seek_time(&mut self, realtime: u64) -> io::Result<()>;

    /// Steps to the next record; `false` at the end.
    ///
    /// # Errors
    /// Those of the journal.
    fn next(&mut self) -> io::Result<bool>;

    /// Steps to the record before; `false` at the beginning.
    ///
    /// # Errors
    /// Those of the journal.
    fn previous(&mut self) -> io::Result<bool>;

    /// The record stepped to.
    ///
    /// # Errors
    /// Those of the journal.
    fn record(&mut self) -> io::Result<Record>;
}

/// Where the journal is.
#[derive(Debug, Clone)]
pub enum Place {
    /// This machine's.
    System,
    /// Journal files in a directory.
    Directory(PathBuf),
}

impl Place {
    fn open(&self) -> io::Result<Journal> {
        let mut journal = match self {
            Self::System => OpenOptions::default().system(true).local_only(true).open(),
            Self::Directory(path) => {
                let path = path.to_str().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
                OpenDirectoryOptions::default().open_directory(path)
            }
        }
        .map_err(error)?;
        journal.set_data_threshold(FIELD_MAX).map_err(error)?;
        Ok(journal)
    }

    /// Names of all containers that ever wrote to this journal.
    ///
    /// # Errors
    /// Those of the journal.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let mut journal = self.open()?;
        journal.query_unique("CONTAINER_NAME").map_err(error)?;
        journal.restart_unique();
        let mut names = Vec::new();
        while let Some(field) = journal.enumerate_unique().map_err(error)? {
            let name = field.value().and_then(|v| std::str::from_utf8(v).ok());
            names.extend(name.map(str::to_owned));
            if names.len() >= NAMES_MAX {
                break;
            }
        }
        Ok(names)
    }
}

/// libsystemd's journal, filtered to one container. It must stay on the thread that made it.
pub struct JournalReader {
    journal: Journal,
}

impl std::fmt::Debug for JournalReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JournalReader").finish_non_exhaustive()
    }
}

impl JournalReader {
    /// Opens the journal for one container.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(place: &Place, target: &Target) -> io::Result<Self> {
        let mut journal = place.open()?;
        let matched = match target {
            Target::Name(name) => journal.match_add("CONTAINER_NAME", name.as_str()),
            Target::ShortId(id) => journal.match_add("CONTAINER_ID", id.as_str()),
            Target::FullId(id) => journal.match_add("CONTAINER_ID_FULL", id.as_str()),
        };
        matched.map_err(error)?;
        Ok(Self { journal })
    }

    /// A descriptor that becomes readable when the journal changes. From now on changes are noticed, so call it before
    /// the records are read.
    ///
    /// # Errors
    /// When the directories cannot be watched.
    pub fn watch(&self) -> io::Result<OwnedFd> {
        // `as_raw_fd` would panic where this fails.
        self.journal.fd().map_err(error)?;
        dstack_sys::borrow::duplicate(&*self.journal)
    }

    /// Takes note of a change, so that new records are found and the descriptor is quiet again.
    ///
    /// # Errors
    /// Those of the journal.
    pub fn acknowledge(&mut self) -> io::Result<()> {
        self.journal.process().map(drop).map_err(error)
    }
}

impl Reader for JournalReader {
    fn seek_head(&mut self) -> io::Result<()> {
        self.journal.seek_head().map_err(error)
    }

    fn seek_tail(&mut self) -> io::Result<()> {
        self.journal.seek_tail().map_err(error)
    }

    fn seek_time(&mut self, realtime: u64) -> io::Result<()> {
        self.journal.seek_realtime_usec(realtime).map_err(error)
    }

    fn next(&mut self) -> io::Result<bool> {
        self.journal.next().map(|steps| steps > 0).map_err(error)
    }

    fn previous(&mut self) -> io::Result<bool> {
        self.journal.previous().map(|steps| steps > 0).map_err(error)
    }

    fn record(&mut self) -> io::Result<Record> {
        let realtime = self.journal.timestamp_usec().map_err(error)?;
        Record::from_fields(realtime, |name| {
            let field = self.journal.get_data(name).map_err(error)?;
            Ok(field.and_then(|f| f.value().map(<[u8]>::to_vec)))
        })
    }
}

fn error(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::other(error)
}

/// Records in memory, for tests.
#[cfg(test)]
#[derive(Debug, Default)]
pub struct ListReader {
    /// Oldest first.
    pub records: Vec<Record>,
    /// How many records lie before the next one.
    pub at: usize,
}

#[cfg(test)]
impl Reader for ListReader {
    fn seek_head(&mut self) -> io::Result<()> {
        self.at = 0;
        Ok(())
    }

    fn seek_tail(&mut self) -> io::Result<()> {
        self.at = self.records.len() + 1;
        Ok(())
    }

    fn seek_time(&mut self, realtime: u64) -> io::Result<()> {
        let before = self.records.iter().take_while(|r| r.realtime < realtime).count();
        // `previous` from here gives the record before, `next` the one at the time.
        self.at = before;
        Ok(())
    }

    fn next(&mut self) -> io::Result<bool> {
        let there = self.at < self.records.len();
        self.at += usize::from(there);
        Ok(there)
    }

    fn previous(&mut self) -> io::Result<bool> {
        let target =
            if self.at > self.records.len() { self.records.len() } else { self.at.saturating_sub(1) };
        if target == 0 {
            return Ok(false);
        }
        self.at = target;
        Ok(true)
    }

    fn record(&mut self) -> io::Result<Record> {
        self.records.get(self.at.wrapping_sub(1)).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}
