//! Files that others replace while we run: tokens, certificates.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use mecha_components_api::{Error, ErrorKind, Result};
use zeroize::Zeroizing;

/// No token, certificate or kubeconfig is larger.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// The content of a file, wiped when it is dropped.
pub(crate) type Content = Zeroizing<Vec<u8>>;

/// Tells one state of a file from the next; `None` while it cannot be looked at.
type Stamp = Option<(Option<SystemTime>, u64, u64)>;

/// The files that something was made of, as they were before they were read.
#[derive(Debug, Default)]
pub(crate) struct Files(Vec<(PathBuf, Stamp)>);

impl Files {
    /// Reads a file and remembers it. `what` names it in the error.
    pub(crate) fn read(&mut self, what: &str, path: &Path) -> Result<Content> {
        self.0.push((path.to_owned(), stamp(path)));
        let unusable = |why: String| {
            let message = format!("the {what} {} cannot be read: {why}", path.display());
            Error::new(ErrorKind::FailedPrecondition, message)
        };
        let file = fs::File::open(path).map_err(|e| unusable(e.to_string()))?;
        let mut bytes = Zeroizing::new(Vec::new());
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|e| unusable(e.to_string()))?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(unusable("it has more than 4 MiB".to_owned()));
        }
        Ok(bytes)
    }

    /// Whether one of them is no longer what was read.
    pub(crate) fn changed(&self) -> bool {
        self.0.iter().any(|(path, before)| stamp(path) != *before)
    }

    /// Takes what is there now for read.
    pub(crate) fn accept(&mut self) {
        for (path, before) in &mut self.0 {
            *before = stamp(path);
        }
    }
}

fn stamp(path: &Path) -> Stamp {
    let md = fs::metadata(path).ok()?;
    #[cfg(unix)]
    let inode = std::os::unix::fs::MetadataExt::ino(&md);
    #[cfg(not(unix))]
    let inode = 0;
    Some((md.modified().ok(), md.len(), inode))
}
