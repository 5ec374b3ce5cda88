//! ETags over the swap of a store. Stores count versions or hash values, so an ETag of one store
//! may match by chance at the next. After a swap the app sees ETags that name the store they are
//! from; before one they pass unchanged.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};

use mecha_components_api::{Error, Result};

/// First byte of a mark.
const LEAD: u8 = b'm';
/// Between mark and the store's own ETag.
const END: u8 = b'~';
/// Bytes of `m0123abcd~`.
const LENGTH: usize = 10;

/// Which store ETags come from, and whether the app has to be shown.
#[derive(Debug)]
pub struct EtagMark {
    own: u32,
    /// Only ever set: an app that was shown marks is shown them on.
    shown: AtomicBool,
}

impl EtagMark {
    /// The mark of a store that holds its data at `place`, the same in every process. A store
    /// that names no place has a mark of its own.
    #[must_use]
    pub fn new(place: Option<&str>) -> Self {
        let own = match place {
            Some(place) => fnv(place.as_bytes()),
            None => (RandomState::new().hash_one(std::time::Instant::now()) >> 32) as u32,
        };
        Self { own, shown: AtomicBool::new(false) }
    }

    /// The store takes the place of another. Its mark is shown once the data is another.
    pub fn follow(&self, before: &Self) {
        if before.is_shown() || before.own != self.own {
            self.shown.store(true, Ordering::Relaxed);
        }
    }

    /// What is to be known of it once the store is gone.
    #[must_use]
    pub fn copy(&self) -> Self {
        Self { own: self.own, shown: AtomicBool::new(self.is_shown()) }
    }

    /// Whether ETags are handed out with the mark.
    #[must_use]
    pub fn is_shown(&self) -> bool {
        self.shown.load(Ordering::Relaxed)
    }

    /// The ETag as the app gets it.
    #[must_use]
    pub fn out(&self, etag: Option<String>) -> Option<String> {
        if !self.is_shown() {
            return etag;
        }
        etag.map(|etag| format!("m{:08x}~{etag}", self.own))
    }

    /// The store's own ETag of what the app sent.
    ///
    /// # Errors
    /// `Conflict`: it is from another store.
    pub fn given<'e>(&self, etag: &'e str) -> Result<&'e str> {
        match split(etag) {
            Some((mark, own)) if mark == self.own => Ok(own),
            None if !self.is_shown() => Ok(etag),
            Some(_) | None => {
                Err(Error::conflict("the ETag is from a store that was replaced since; read the key again"))
            }
        }
    }
}

/// Mark and ETag of a marked ETag.
fn split(etag: &str) -> Option<(u32, &str)> {
    let bytes = etag.as_bytes();
    if bytes.len() < LENGTH || bytes[0] != LEAD || bytes[LENGTH - 1] != END {
        return None;
    }
    let digits = etag.get(1..LENGTH - 1)?;
    // `from_str_radix` takes a sign as well.
    if !digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    Some((u32::from_str_radix(digits, 16).ok()?, etag.get(LENGTH..)?))
}

/// FNV-1a: the same in every process and version, and no secret is in a place.
fn fnv(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// What a component says of its place, with what the runtime adds to it.
#[must_use]
pub fn place(own: Option<String>, kind: &str, prefix: &str) -> Option<String> {
    own.map(|own| format!("{kind}\n{own}\n{prefix}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mecha_components_api::ErrorKind;
    use proptest::prelude::*;

    fn after(place: &str, before: &EtagMark) -> EtagMark {
        let mark = EtagMark::new(Some(place));
        mark.follow(before);
        mark
    }

    #[test]
    fn without_a_swap_etags_pass_unchanged() {
        let mark = EtagMark::new(Some("a"));
        assert_eq!(mark.out(Some("5".into())).as_deref(), Some("5"));
        assert_eq!(mark.given("5").unwrap(), "5");
        // Another instance at the same place changes nothing.
        let again = after("a", &mark);
        assert_eq!(again.out(Some("5".into())).as_deref(), Some("5"));
    }

    #[test]
    fn after_a_swap_an_old_etag_conflicts_and_a_new_one_matches() {
        let new = after("b", &EtagMark::new(Some("a")));
        assert_eq!(new.given("5").unwrap_err().kind(), ErrorKind::Conflict);
        let shown = new.out(Some("5".into())).unwrap();
        assert_ne!(shown, "5");
        assert_eq!(new.given(&shown).unwrap(), "5");
        // A process that began with the new store takes what this one handed out.
        assert_eq!(EtagMark::new(Some("b")).given(&shown).unwrap(), "5");
        // And one that still has the old store does not.
        assert_eq!(EtagMark::new(Some("a")).given(&shown).unwrap_err().kind(), ErrorKind::Conflict);
    }

    #[test]
    fn on_the_way_back_etags_stay_marked() {
        let old = EtagMark::new(Some("a"));
        let new = after("b", &old);
        old.follow(&new);
        assert_eq!(old.given("5").unwrap_err().kind(), ErrorKind::Conflict);
        let shown = old.out(Some("5".into())).unwrap();
        assert_eq!(old.given(&shown).unwrap(), "5");
        assert_eq!(new.given(&shown).unwrap_err().kind(), ErrorKind::Conflict);
    }

    #[test]
    fn stores_without_a_place_are_never_the_same() {
        let next = EtagMark::new(None);
        next.follow(&EtagMark::new(None));
        assert!(next.is_shown());
        assert_eq!(EtagMark::new(None).out(None), None);
    }

    proptest! {
        #[test]
        fn what_goes_out_comes_back(etag in ".{0,40}", from in "[a-z]{1,8}", to in "[a-z]{1,8}") {
            let mark = after(&to, &EtagMark::new(Some(&from)));
            let shown = mark.out(Some(etag.clone())).unwrap();
            if mark.is_shown() {
                prop_assert_eq!(mark.given(&shown).unwrap(), etag);
            } else {
                prop_assert_eq!(shown, etag);
            }
        }

        #[test]
        fn whatever_an_app_sends_is_an_answer(etag in ".{0,60}") {
            let _ = EtagMark::new(Some("a")).given(&etag);
        }
    }
}
