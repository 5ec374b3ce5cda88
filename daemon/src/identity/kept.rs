//! The last identity, kept for a container that starts while the authority is away. The folder
//! lives in memory and as long as the pod; the trust anchors have a volume of their own.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use mecha_identity::{Bundle, Expect, Identity, KeyPair};

/// The file in the folder: chain and key in PEM.
const FILE: &str = "identity.pem";
/// Largest file that is read, in bytes.
const MAX_BYTES: u64 = 256 * 1024;

/// Where the identity is kept.
#[derive(Debug)]
pub(super) struct Kept(PathBuf);

impl Kept {
    pub(super) fn new(folder: &Path) -> Self {
        Self(folder.join(FILE))
    }

    /// Keeps an identity in the place of the one before: whole, and readable by this user alone.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub(super) fn write(&self, identity: &Identity, key: &KeyPair) -> io::Result<()> {
        let beside = self.0.with_extension("new");
        // Left by a process that was killed; what it allows to others is not known.
        match fs::remove_file(&beside) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(identity.chain_pem().as_bytes())?;
        file.write_all(key.to_pem().as_bytes())?;
        fs::rename(&beside, &self.0)
    }

    /// The identity that was kept, if it is still good; `None` where there is none.
    ///
    /// # Errors
    /// Why it is not used, without its content.
    pub(super) fn read(&self, workload: &Expect, anchors: &Bundle) -> Result<Option<Identity>, String> {
        let mut text = String::new();
        match File::open(&self.0).and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text)) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(format!("it cannot be read: {e}")),
        }
        let key = KeyPair::from_pem(&text).map_err(|e| e.to_string())?;
        let identity = Identity::from_pem(&text, &key).map_err(|e| e.to_string())?;
        if !workload.accepts(identity.id()) {
            return Err(format!("it is of {}", identity.id()));
        }
        if !anchors.trusts(&identity, SystemTime::now()) {
            return Err("it has ended, or leads to no trust anchor".to_owned());
        }
        Ok(Some(identity))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    use mecha_identity::KeyKind;
    use mecha_identity::testing::Ca;

    use super::*;

    #[test]
    fn what_is_kept_is_private_and_used_while_it_is_good() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Kept::new(folder.path());
        let (ca, other) = (Ca::new("root"), Ca::new("root"));
        let bundle = |ca: &Ca| Bundle::from_pem(&ca.root_pem()).unwrap();
        let me = Expect::Workload { namespace: "shop".to_owned(), app_id: "orders".to_owned() };
        assert!(kept.read(&me, &bundle(&ca)).unwrap().is_none());

        let key = KeyPair::generate(KeyKind::P256).unwrap();
        let chain = ca.sign(&key, &["spiffe://public/ns/shop/orders"], Duration::from_secs(60));
        let identity = Identity::from_pem(&chain, &key).unwrap();
        for _ in 0..2 {
            kept.write(&identity, &key).unwrap();
            let files: Vec<_> = fs::read_dir(folder.path()).unwrap().map(Result::unwrap).collect();
            assert_eq!(files.len(), 1);
            assert_eq!(files[0].metadata().unwrap().permissions().mode() & 0o777, 0o600);
            let again = kept.read(&me, &bundle(&ca)).unwrap().unwrap();
            assert_eq!((again.id(), again.not_after()), (identity.id(), identity.not_after()));
        }
        assert!(kept.read(&me, &bundle(&other)).unwrap_err().contains("no trust anchor"));
        let stock = Expect::Workload { namespace: "shop".to_owned(), app_id: "stock".to_owned() };
        assert!(kept.read(&stock, &bundle(&ca)).unwrap_err().contains("spiffe://public/ns/shop/orders"));
        fs::write(folder.path().join(FILE), "torn").unwrap();
        assert!(kept.read(&me, &bundle(&ca)).is_err());
    }
}
