//! What a sidecar may start from while the agent is away: the last set, signed by the agent, in a folder
//! that survives the container and not the pod.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use mecha_identity::{Bundle, SignatureError, SpiffeId, verify};
use mecha_proto::delivery as wire;
use prost::Message as _;

/// The file in the folder.
const FILE: &str = "documents.snapshot";
/// Largest file that is read; more than the largest set that an agent sends.
const MAX_BYTES: u64 = 64 << 20;
/// How far the clock of the agent may be ahead of ours.
const AHEAD: Duration = Duration::from_secs(300);

/// Who has to have signed, for whom, and when.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    pub(super) namespace: String,
    pub(super) app_id: String,
    /// SPIFFE ids of which one has to have signed.
    pub(super) signers: Vec<SpiffeId>,
    /// Oldest snapshot that counts.
    pub(super) max_age: Duration,
}

/// A snapshot that may be used.
#[derive(Debug)]
pub(super) struct Good {
    pub(super) issued_at: SystemTime,
    pub(super) digest: String,
    pub(super) documents: Vec<wire::Document>,
}

/// Where the snapshot lies.
#[derive(Clone, Debug)]
pub(super) struct Place(PathBuf);

impl Place {
    pub(super) fn new(folder: &Path) -> Self {
        Self(folder.join(FILE))
    }

    /// Writes a snapshot in the place of the one before: whole, and readable by this user alone.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub(super) fn write(&self, snapshot: &wire::SignedSnapshot) -> io::Result<()> {
        let beside = self.0.with_extension("new");
        // Left by a process that was killed; what it allows to others is not known.
        match fs::remove_file(&beside) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(&snapshot.encode_to_vec())?;
        file.sync_all()?;
        fs::rename(&beside, &self.0)
    }

    /// Reads the snapshot; `None` where there is none.
    ///
    /// # Errors
    /// Why it does not count.
    pub(super) fn read(&self, terms: &Terms, anchors: &Bundle) -> Result<Option<Good>, String> {
        let mut bytes = Vec::new();
        match File::open(&self.0).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes)) {
            Ok(_) if bytes.len() as u64 > MAX_BYTES => return Err(format!("it is larger than {MAX_BYTES} bytes")),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(format!("it cannot be read: {e}")),
        }
        let signed = wire::SignedSnapshot::decode(&*bytes).map_err(|e| format!("it is torn: {e}"))?;
        check(&signed, terms, anchors, SystemTime::now()).map(Some)
    }
}

/// Judges a snapshot.
///
/// # Errors
/// Why it does not count.
pub(super) fn check(
    signed: &wire::SignedSnapshot,
    terms: &Terms,
    anchors: &Bundle,
    now: SystemTime,
) -> Result<Good, String> {
    let snapshot = wire::Snapshot::decode(&*signed.payload).map_err(|e| format!("it is torn: {e}"))?;
    let issued_at = snapshot.issued_at.and_then(|at| SystemTime::try_from(at).ok());
    let issued_at = issued_at.ok_or("it does not say when it was made")?;
    // A certificate lives shorter than a snapshot may; it has to have been good when it signed.
    let by = |signer| verify(&signed.payload, &signed.signature, &signed.chain, anchors, signer, issued_at);
    let mut verdict = Err("nobody is trusted to sign it".to_owned());
    for signer in &terms.signers {
        let found = by(signer);
        verdict = found.as_ref().map_err(ToString::to_string).copied();
        if !matches!(found, Err(SignatureError::Signer { .. })) {
            break;
        }
    }
    verdict?;
    match now.duration_since(issued_at) {
        Ok(age) if age > terms.max_age => {
            return Err(format!("it is {age:.0?} old, more than {:.0?}", terms.max_age));
        }
        Err(ahead) if ahead.duration() > AHEAD => {
            return Err(format!("it is from the future, by {:.0?}", ahead.duration()));
        }
        _ => {}
    }
    if (&*snapshot.namespace, &*snapshot.app_id) != (&*terms.namespace, &*terms.app_id) {
        return Err(format!(
            "it is for app {} in namespace {}, not for {} in {}",
            snapshot.app_id, snapshot.namespace, terms.app_id, terms.namespace
        ));
    }
    Ok(Good { issued_at, digest: snapshot.digest, documents: snapshot.documents })
}
