use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::{Errno, Result};

/// Names of files that are being written. Never listed, read or given out.
const TEMP: &str = ".mecha-tmp-";
/// A file in the making that is older was left behind by a killed process.
const TEMP_AGE: Duration = Duration::from_secs(3600);
const MAX_DEPTH: usize = 64;
const MAX_NAME: usize = 255;

const FOLDER: Mode = Mode::RWXU;
const FILE: Mode = Mode::RUSR.union(Mode::WUSR);

/// A folder that nothing here can leave: each part of a path is opened
/// relative to the part before, and a symbolic link is never followed. This
/// holds against links that are put there at the same time.
#[derive(Debug)]
pub(crate) struct Root(OwnedFd);

/// Why a file name is refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadName(pub(crate) &'static str);

/// The parts of a relative path; a leading slash counts as the root of the folder.
pub(crate) fn parts(name: &str) -> std::result::Result<Vec<&str>, BadName> {
    let parts: Vec<&str> = name.split('/').filter(|p| !matches!(*p, "" | ".")).collect();
    if parts.contains(&"..") {
        return Err(BadName("must not hold '..'"));
    }
    if name.contains('\0') {
        return Err(BadName("must not hold NUL"));
    }
    if parts.iter().any(|p| p.len() > MAX_NAME) || parts.len() > MAX_DEPTH {
        return Err(BadName("is too long or too deep"));
    }
    if parts.iter().any(|p| p.starts_with(TEMP)) {
        return Err(BadName("begins like a file in the making"));
    }
    Ok(parts)
}

/// Outcome of a listing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Listing {
    /// Every regular file, relative to the root.
    All(Vec<String>),
    /// There are more than the limit.
    TooMany,
}

/// Outcome of a read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// All of it.
    Whole(Vec<u8>),
    /// It is larger than the limit.
    TooLarge,
    /// It is a folder, a device or the like.
    NoFile,
}

impl Root {
    /// Opens the folder, made with its parents (mode 0700) when it is not there.
    pub(crate) fn open(path: &Path) -> std::io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    fn folder(&self, parts: &[&str], create: bool) -> Result<OwnedFd> {
        let mut at = self.0.try_clone().map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::MFILE))?;
        for part in parts {
            at = match open_folder(&at, part) {
                Err(Errno::NOENT) if create => {
                    match rustix::fs::mkdirat(&at, *part, FOLDER) {
                        // Somebody else may have made it in between.
                        Ok(()) => rustix::fs::fsync(&at)?,
                        Err(Errno::EXIST) => {}
                        Err(e) => return Err(e),
                    }
                    open_folder(&at, part)?
                }
                other => other?,
            };
        }
        Ok(at)
    }

    /// Writes the file whole or not at all: after a crash at any moment it has
    /// the old content or the new. On the disk when this returns.
    pub(crate) fn write(&self, parts: &[&str], data: &[u8]) -> Result<()> {
        let (name, folder) = parts.split_last().ok_or(Errno::ISDIR)?;
        let folder = self.folder(folder, true)?;
        let temp = format!("{TEMP}{}", uuid::Uuid::new_v4().simple());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(&folder, &temp, flags, FILE)?);
        let written = file
            .write_all(data)
            .and_then(|()| file.sync_all())
            .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
            .and_then(|()| rustix::fs::renameat(&folder, &temp, &folder, *name));
        if let Err(e) = written {
            // The first error counts; what cannot be removed now is swept later.
            let _ = rustix::fs::unlinkat(&folder, &temp, AtFlags::empty());
            return Err(e);
        }
        rustix::fs::fsync(&folder)
    }

    /// Reads a file of at most `limit` bytes.
    pub(crate) fn read(&self, parts: &[&str], limit: u64) -> Result<Content> {
        let (name, folder) = parts.split_last().ok_or(Errno::ISDIR)?;
        let folder = self.folder(folder, false)?;
        // Non-blocking, so that a named pipe cannot hold the thread.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&folder, *name, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(Content::NoFile);
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if size > limit {
            return Ok(Content::TooLarge);
        }
        let mut data = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        let mut file = File::from(file).take(limit + 1);
        file.read_to_end(&mut data).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        Ok(if data.len() as u64 > limit { Content::TooLarge } else { Content::Whole(data) })
    }

    /// Removes a file or an empty folder.
    pub(crate) fn remove(&self, parts: &[&str]) -> Result<()> {
        let (name, folder) = parts.split_last().ok_or(Errno::ISDIR)?;
        let folder = self.folder(folder, false)?;
        match rustix::fs::unlinkat(&folder, *name, AtFlags::empty()) {
            // Linux says ISDIR, others PERM.
            Err(Errno::ISDIR | Errno::PERM) => rustix::fs::unlinkat(&folder, *name, AtFlags::REMOVEDIR)?,
            other => other?,
        }
        rustix::fs::fsync(&folder)
    }

    /// Regular files below a folder in the order of their names, links left out.
    pub(crate) fn list(&self, parts: &[&str], limit: usize) -> Result<Listing> {
        let folder = self.folder(parts, false)?;
        let mut found = Vec::new();
        let prefix = parts.iter().fold(String::new(), |p, part| p + part + "/");
        Ok(match walk(&folder, &prefix, limit, parts.len(), &mut found)? {
            true => Listing::All(found),
            false => Listing::TooMany,
        })
    }
}

fn open_folder(at: &OwnedFd, name: &str) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

/// `false` when the limit was met.
fn walk(folder: &OwnedFd, prefix: &str, limit: usize, depth: usize, found: &mut Vec<String>) -> Result<bool> {
    let mut entries = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        // A name that is no UTF-8 text cannot be asked for either.
        let Ok(name) = entry.file_name().to_str() else { continue };
        if matches!(name, "." | "..") {
            continue;
        }
        if entries.len() + found.len() > limit {
            return Ok(false);
        }
        entries.push(name.to_owned());
    }
    entries.sort_unstable();
    for name in entries {
        let stat = match rustix::fs::statat(folder, &name, AtFlags::SYMLINK_NOFOLLOW) {
            // Removed since the folder was read.
            Err(Errno::NOENT) => continue,
            other => other?,
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile if name.starts_with(TEMP) => {
                let age = u64::try_from(stat.st_mtime).ok().and_then(|s| {
                    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + Duration::from_secs(s)).ok()
                });
                if age.is_some_and(|a| a > TEMP_AGE) {
                    let _ = rustix::fs::unlinkat(folder, &name, AtFlags::empty());
                }
            }
            FileType::RegularFile => {
                if found.len() >= limit {
                    return Ok(false);
                }
                found.push(format!("{prefix}{name}"));
            }
            FileType::Directory if depth < MAX_DEPTH => {
                let inner = match open_folder(folder, &name) {
                    // Removed, or replaced by a link or a file, since.
                    Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => continue,
                    other => other?,
                };
                if !walk(&inner, &format!("{prefix}{name}/"), limit, depth + 1, found)? {
                    return Ok(false);
                }
            }
            _ => {}
        }
    }
    Ok(true)
}

/// `path` made absolute, its links resolved as far as it exists, `..` taken out of the rest.
pub(crate) fn resolve(path: &Path) -> std::io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    let (mut resolved, mut exists) = (PathBuf::from("/"), true);
    for part in path.components() {
        match part {
            Component::Normal(name) => {
                resolved.push(name);
                if exists {
                    match resolved.canonicalize() {
                        Ok(real) => resolved = real,
                        Err(e) if e.kind() == std::io::ErrorKind::NotFound => exists = false,
                        Err(e) => return Err(e),
                    }
                }
            }
            Component::ParentDir => {
                resolved.pop();
                exists = true;
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok(resolved)
}

#[cfg(test)]
#[path = "confined_tests.rs"]
mod tests;
