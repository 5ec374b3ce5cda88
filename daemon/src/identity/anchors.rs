//! Where the trust anchors come from: a file that is followed, else a variable that never
//! changes.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use mecha_identity::Bundle;
use parking_lot::Mutex;

use super::LOG;

/// Largest file read, in bytes: what a ConfigMap can hold.
const MAX_FILE: u64 = 1 << 20;

/// The sources of the trust anchors.
#[derive(Debug)]
pub(super) struct Anchors {
    given: Option<Bundle>,
    file: Option<PathBuf>,
    seen: Mutex<Option<Found>>,
}

/// What was read from the file, or why nothing was.
type Found = Result<String, String>;

impl Anchors {
    /// Anchors of the variable and of the file, which may not be there yet.
    ///
    /// # Errors
    /// The variable is set and holds no anchors.
    pub(super) fn new(given: Option<&str>, file: Option<PathBuf>) -> Result<Self, String> {
        let given = given.map(Bundle::from_pem).transpose().map_err(|e| format!("DAPR_TRUST_ANCHORS: {e}"))?;
        Ok(Self { given, file, seen: Mutex::default() })
    }

    /// The anchors now. The file counts alone once it is there: an anchor that was taken out of
    /// it is not to live on in the variable.
    ///
    /// # Errors
    /// There are none, and why.
    pub(super) fn read(&self) -> Result<Bundle, String> {
        match (self.look(), &self.given) {
            (Some(found), given) => {
                let bundle = self.parse(&found);
                *self.seen.lock() = Some(found);
                match (bundle, given) {
                    (Ok(bundle), _) => Ok(bundle),
                    (Err(e), Some(given)) => {
                        tracing::warn!(target: LOG, "{e}; until it can be read, DAPR_TRUST_ANCHORS counts");
                        Ok(given.clone())
                    }
                    (Err(e), None) => Err(format!("trust anchors are required: {e}")),
                }
            }
            (None, Some(given)) => Ok(given.clone()),
            (None, None) => Err("trust anchors are required".to_owned()),
        }
    }

    /// What the file says, if it says something else than at the last look. A file that cannot
    /// be read is an error once.
    pub(super) fn changed(&self) -> Option<Result<Bundle, String>> {
        let found = self.look()?;
        let mut seen = self.seen.lock();
        if seen.as_ref() == Some(&found) {
            return None;
        }
        let bundle = self.parse(&found);
        *seen = Some(found);
        Some(bundle)
    }

    /// Whether there is a file to follow.
    pub(super) fn are_followed(&self) -> bool {
        self.file.is_some()
    }

    fn look(&self) -> Option<Found> {
        self.file.as_deref().map(|path| read_limited(path).map_err(|e| e.to_string()))
    }

    fn parse(&self, found: &Found) -> Result<Bundle, String> {
        let bundle = found.clone().and_then(|text| Bundle::from_pem(&text).map_err(|e| e.to_string()));
        let path = self.file.as_deref().unwrap_or(Path::new(""));
        bundle.map_err(|e| format!("MECHA_TRUST_ANCHORS_FILE {}: {e}", path.display()))
    }
}

fn read_limited(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(io::Error::other(format!("larger than {MAX_FILE} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use mecha_identity::testing::Ca;

    use super::*;

    #[test]
    fn the_file_counts_once_it_is_there() {
        let (old, new) = (Ca::new("old"), Ca::new("new"));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.crt");
        let anchors = Anchors::new(Some(&old.root_pem()), Some(path.clone())).unwrap();
        let digest = |ca: &Ca| Bundle::from_pem(&ca.root_pem()).unwrap().digest();
        assert_eq!(anchors.read().unwrap().digest(), digest(&old));
        assert!(anchors.changed().is_none());
        std::fs::write(&path, new.root_pem()).unwrap();
        assert_eq!(anchors.changed().unwrap().unwrap().digest(), digest(&new));
        assert!(anchors.changed().is_none());
        std::fs::write(&path, "half a file").unwrap();
        assert!(anchors.changed().unwrap().unwrap_err().contains("holds no certificate"));
        assert!(anchors.changed().is_none(), "told once");
        std::fs::remove_file(&path).unwrap();
        assert!(anchors.changed().unwrap().is_err());
    }

    #[test]
    fn no_anchors_is_an_error_that_says_where_they_were_looked_for() {
        let anchors = Anchors::new(None, Some("/nowhere/ca.crt".into())).unwrap();
        let error = anchors.read().unwrap_err();
        assert!(error.contains("trust anchors are required") && error.contains("/nowhere/ca.crt"), "{error}");
        assert!(Anchors::new(Some("no pem"), None).unwrap_err().contains("DAPR_TRUST_ANCHORS"));
    }
}
