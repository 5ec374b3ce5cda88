//! The roots that are in force, and the way from one to the next.
//!
//! At any time one root signs. A rotation makes the next one, publishes it beside the one that signs, waits until
//! everybody can have read that, lets the next one sign, and keeps publishing the former one until the last
//! certificate that it signed has ended. Every step is one write of one Secret, guarded by its resource version,
//! so that any replica may take it, and two of them cannot take it twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mecha_identity::Bundle;
use serde::{Deserialize, Serialize};

use crate::authority::{Authority, AuthorityError, Root, seconds, time};

/// Former roots that are published at once. A rotation that would need more waits for the oldest to end.
const MAX_FORMER: usize = 4;

const ROOT: &str = "ca.crt";
const ROOT_KEY: &str = "ca.key";
const NEXT: &str = "next.crt";
const NEXT_KEY: &str = "next.key";
const FORMER: &str = "former.crt";
const STATE: &str = "state.json";

/// Times of a rotation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    /// Life of a root.
    pub(crate) root_life: Duration,
    /// Life of a leaf.
    pub(crate) leaf_ttl: Duration,
    /// Time between the publication of a root and its first signature.
    pub(crate) publish_wait: Duration,
}

/// The roots in force.
#[derive(Clone, Debug)]
pub(crate) struct Generations {
    /// Signs.
    pub(crate) signing: Arc<Authority>,
    /// Is published and does not sign yet, since when.
    pub(crate) next: Option<(Arc<Authority>, SystemTime)>,
    /// Do not sign any more and are published until then.
    former: Vec<(Root, SystemTime)>,
    /// Longest life that any leaf was given, so that a shorter setting does not forget them.
    longest_leaf: Duration,
    /// The request for a rotation that was last followed.
    rotated: String,
    /// Rises with every step, also when the Secret is made anew, so that nobody publishes an older bundle.
    pub(crate) number: u64,
}

/// What is not in the certificates themselves. Seconds since 1970.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct State {
    next_since: i64,
    former_until: Vec<i64>,
    longest_leaf_seconds: u64,
    rotated: String,
    number: u64,
}

/// A step that was taken, for logs and events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The next root is made and published.
    Prepared,
    /// The next root signs.
    Switched,
    /// Former roots are published no more.
    Retired,
}

impl Generations {
    /// A first root.
    pub(crate) fn begin(trust_domain: &str, timing: Timing, now: SystemTime) -> Result<Self, AuthorityError> {
        Ok(Self {
            signing: Arc::new(Authority::generate(trust_domain, now, timing.root_life)?),
            next: None,
            former: Vec::new(),
            longest_leaf: timing.leaf_ttl,
            rotated: String::new(),
            number: seconds(now).unsigned_abs(),
        })
    }

    /// Reads the data of the Secret. Somebody's own root, without what we add, is taken as it is.
    pub(crate) fn read(data: &BTreeMap<String, Vec<u8>>, timing: Timing) -> Result<Self, AuthorityError> {
        let text = |key: &'static str| match data.get(key) {
            None => Ok(None),
            Some(bytes) => std::str::from_utf8(bytes)
                .map(Some)
                .map_err(|_| AuthorityError::Unreadable { what: key, why: "it is no text".to_owned() }),
        };
        let needed = |key: &'static str| {
            text(key)?.ok_or_else(|| AuthorityError::Unreadable { what: key, why: "it is not there".to_owned() })
        };
        let state: State = match text(STATE)? {
            None => State::default(),
            Some(text) => serde_json::from_str(text)
                .map_err(|e| AuthorityError::Unreadable { what: STATE, why: e.to_string() })?,
        };
        let signing = Arc::new(Authority::read(needed(ROOT)?, needed(ROOT_KEY)?)?);
        let next = match text(NEXT)? {
            None => None,
            Some(root) => Some((Arc::new(Authority::read(root, needed(NEXT_KEY)?)?), time(state.next_since))),
        };
        let former = text(FORMER)?.map(Root::read_all).transpose()?.unwrap_or_default();
        // A root whose end is not known may have signed until now.
        let until = state.former_until.into_iter().map(|s| Some(time(s))).chain(std::iter::repeat(None));
        let former = former.into_iter().zip(until).map(|(root, until)| (until.unwrap_or(root.not_after), root));
        Ok(Self {
            signing,
            next,
            former: former.map(|(until, root)| (root, until)).collect(),
            longest_leaf: Duration::from_secs(state.longest_leaf_seconds).max(timing.leaf_ttl),
            rotated: state.rotated,
            number: state.number,
        })
    }

    /// The data of the Secret.
    pub(crate) fn write(&self) -> BTreeMap<String, Vec<u8>> {
        let mut data = BTreeMap::new();
        let mut put = |key: &str, text: String| data.insert(key.to_owned(), text.into_bytes());
        put(ROOT, self.signing.root().pem.clone());
        put(ROOT_KEY, self.signing.key_pem());
        if let Some((next, _)) = &self.next {
            put(NEXT, next.root().pem.clone());
            put(NEXT_KEY, next.key_pem());
        }
        if !self.former.is_empty() {
            put(FORMER, self.former.iter().map(|(root, _)| root.pem.as_str()).collect());
        }
        let state = State {
            next_since: self.next.as_ref().map_or(0, |(_, since)| seconds(*since)),
            former_until: self.former.iter().map(|(_, until)| seconds(*until)).collect(),
            longest_leaf_seconds: full_seconds(self.longest_leaf),
            rotated: self.rotated.clone(),
            number: self.number,
        };
        // Numbers and text: this cannot fail.
        put(STATE, serde_json::to_string(&state).unwrap_or_default());
        data
    }

    /// All roots that certificates may lead to, the one that signs first.
    pub(crate) fn bundle(&self) -> Result<Bundle, AuthorityError> {
        let mut pem = self.signing.root().pem.clone();
        if let Some((next, _)) = &self.next {
            pem.push_str(&next.root().pem);
        }
        self.former.iter().for_each(|(root, _)| pem.push_str(&root.pem));
        Bundle::from_pem(&pem).map_err(|e| AuthorityError::Unreadable { what: "the bundle", why: e.to_string() })
    }

    /// The same with what `data` does not say yet; `None` when it says all. To be written before anything is
    /// signed: a root may go only when its longest leaf has ended.
    pub(crate) fn completed(&self, data: &BTreeMap<String, Vec<u8>>, timing: Timing, now: SystemTime) -> Option<Self> {
        let state = data.get(STATE).and_then(|bytes| serde_json::from_slice::<State>(bytes).ok()).unwrap_or_default();
        if state.number > 0 && state.longest_leaf_seconds >= full_seconds(timing.leaf_ttl) {
            return None;
        }
        let number = if self.number == 0 { seconds(now).unsigned_abs() } else { self.number + 1 };
        Some(Self { number, ..self.clone() })
    }

    /// The step that is due, if any.
    ///
    /// `request` is the request for a rotation as it stands on the Secret. `published` is since when every
    /// namespace has the present bundle; `None` while some has not.
    pub(crate) fn advance(
        &self,
        trust_domain: &str,
        timing: Timing,
        request: &str,
        published: Option<SystemTime>,
        now: SystemTime,
    ) -> Result<Option<(Self, Step)>, AuthorityError> {
        let mut then = Self { number: self.number + 1, ..self.clone() };
        then.former.retain(|(_, until)| now < *until);
        if then.former.len() < self.former.len() {
            return Ok(Some((then, Step::Retired)));
        }
        if let Some((next, since)) = &self.next {
            let waited = published.map(|published| published.max(*since) + timing.publish_wait);
            // A namespace that never takes the bundle must not hold everybody until nothing is valid any more.
            let last_call = self.signing.root().not_after - 2 * self.longest_leaf - timing.publish_wait;
            if waited.is_none_or(|until| now < until) && now < last_call.max(*since + timing.publish_wait) {
                return Ok(None);
            }
            let old = self.signing.root().clone();
            // Replicas that have not heard of the switch may sign with it for a moment more.
            let end = now + self.longest_leaf + timing.publish_wait;
            let until = end.min(old.not_after);
            then.former.push((old, until));
            then.signing = next.clone();
            then.next = None;
            then.longest_leaf = timing.leaf_ttl;
            return Ok(Some((then, Step::Switched)));
        }
        let root = self.signing.root();
        let life = root.not_after.duration_since(root.not_before).unwrap_or_default();
        let old = now >= root.not_before + life.mul_f64(2.0 / 3.0);
        let asked = !request.is_empty() && request != self.rotated;
        if (old || asked) && self.former.len() < MAX_FORMER {
            let next = Authority::generate(trust_domain, now, timing.root_life)?;
            then.next = Some((Arc::new(next), now));
            request.clone_into(&mut then.rotated);
            return Ok(Some((then, Step::Prepared)));
        }
        Ok(None)
    }
}

fn full_seconds(span: Duration) -> u64 {
    span.as_secs() + u64::from(span.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const TIMING: Timing = Timing {
        root_life: Duration::from_secs(365 * 24 * 3600),
        leaf_ttl: HOUR,
        publish_wait: Duration::from_secs(300),
    };

    fn digests(generations: &Generations) -> Vec<String> {
        generations.bundle().unwrap().ders().map(|der| format!("{der:?}")).collect()
    }

    fn step(
        generations: &Generations,
        request: &str,
        published: Option<SystemTime>,
        now: SystemTime,
    ) -> Option<(Generations, Step)> {
        let (then, step) = generations.advance("cluster.local", TIMING, request, published, now).unwrap()?;
        // Whatever is kept has to survive the way through the Secret.
        let read = Generations::read(&then.write(), TIMING).unwrap();
        assert_eq!(read.bundle().unwrap(), then.bundle().unwrap());
        assert_eq!(read.former, then.former.iter().map(|(r, u)| (r.clone(), time(seconds(*u)))).collect::<Vec<_>>());
        Some((read, step))
    }

    #[test]
    fn a_rotation_publishes_waits_switches_and_retires() {
        let now = time(seconds(SystemTime::now()));
        let first = Generations::begin("cluster.local", TIMING, now).unwrap();
        assert!(step(&first, "", Some(now), now).is_none(), "nobody asked");

        let (both, what) = step(&first, "now", Some(now), now).unwrap();
        assert_eq!(what, Step::Prepared);
        assert_eq!(digests(&both)[0], digests(&first)[0], "the old one still signs");
        assert_eq!(digests(&both).len(), 2);
        assert!(step(&both, "now", None, now + HOUR).is_none(), "some namespace has not got it");
        assert!(step(&both, "now", Some(now), now + Duration::from_secs(299)).is_none());
        let late = now + HOUR;
        assert!(step(&both, "now", Some(late), late).is_none(), "the wait begins when all have it");

        let switch = now + Duration::from_secs(300);
        let (new, what) = step(&both, "now", Some(now), switch).unwrap();
        assert_eq!(what, Step::Switched);
        assert_eq!(digests(&new)[0], digests(&both)[1]);
        assert_eq!(digests(&new)[1], digests(&first)[0]);
        assert!(step(&new, "now", Some(now), switch + HOUR).is_none(), "leaves of the old one live");

        let end = switch + HOUR + TIMING.publish_wait;
        let (only, what) = step(&new, "now", Some(now), end).unwrap();
        assert_eq!(what, Step::Retired);
        assert_eq!(digests(&only), [digests(&new)[0].clone()]);
        assert!(step(&only, "now", Some(now), end).is_none(), "one request, one rotation");
        assert_eq!(step(&only, "again", Some(now), end).unwrap().1, Step::Prepared);
    }

    #[test]
    fn age_alone_rotates_and_a_stuck_namespace_does_not_hold_it_for_ever() {
        let now = time(seconds(SystemTime::now()));
        let first = Generations::begin("cluster.local", TIMING, now).unwrap();
        let life = TIMING.root_life;
        assert!(step(&first, "", Some(now), now + life.mul_f64(0.6)).is_none());
        let due = now + life.mul_f64(0.67);
        let (both, what) = step(&first, "", Some(now), due).unwrap();
        assert_eq!(what, Step::Prepared);
        assert!(step(&both, "", None, now + life.mul_f64(0.9)).is_none());
        assert_eq!(step(&both, "", None, now + life - HOUR).unwrap().1, Step::Switched);
    }

    #[test]
    fn a_shorter_setting_does_not_forget_leaves_that_live_longer() {
        let now = time(seconds(SystemTime::now()));
        let first = Generations::begin("cluster.local", Timing { leaf_ttl: 10 * HOUR, ..TIMING }, now).unwrap();
        let read = Generations::read(&first.write(), TIMING).unwrap();
        let (both, _) = step(&read, "now", Some(now), now).unwrap();
        let (new, _) = step(&both, "now", Some(now), now + HOUR).unwrap();
        assert!(step(&new, "now", Some(now), now + 10 * HOUR).is_none());
    }

    #[test]
    fn rotations_in_a_row_wait_for_the_oldest_root() {
        let mut now = time(seconds(SystemTime::now()));
        let mut roots = Generations::begin("cluster.local", TIMING, now).unwrap();
        for turn in 0..MAX_FORMER {
            (roots, _) = step(&roots, &format!("{turn}"), Some(now), now).unwrap();
            now += TIMING.publish_wait;
            (roots, _) = step(&roots, &format!("{turn}"), Some(now - TIMING.publish_wait), now).unwrap();
        }
        assert_eq!(digests(&roots).len(), MAX_FORMER + 1);
        assert!(step(&roots, "more", Some(now), now).is_none());
        let first_end = now + HOUR;
        let (roots, what) = step(&roots, "more", Some(now), first_end).unwrap();
        assert_eq!(what, Step::Retired);
        assert_eq!(step(&roots, "more", Some(now), first_end).unwrap().1, Step::Prepared);
    }

    #[test]
    fn a_root_of_ones_own_is_taken_as_it_is() {
        let now = SystemTime::now();
        let own = Authority::generate("example.org", now, TIMING.root_life).unwrap();
        let data = BTreeMap::from([
            ("ca.crt".to_owned(), own.root().pem.clone().into_bytes()),
            ("ca.key".to_owned(), own.key_pem().into_bytes()),
        ]);
        let read = Generations::read(&data, TIMING).unwrap();
        assert_eq!(read.signing.root(), own.root());
        let completed = read.completed(&data, TIMING, now).unwrap();
        assert!(completed.number > 0);
        assert!(completed.completed(&completed.write(), TIMING, now).is_none());
        let missing = BTreeMap::from([("ca.crt".to_owned(), own.root().pem.clone().into_bytes())]);
        assert!(Generations::read(&missing, TIMING).unwrap_err().to_string().contains("ca.key"));
    }
}
