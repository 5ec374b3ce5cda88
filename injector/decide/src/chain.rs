//! What both chains share: filters in a row, weighted scores, and the record of both.

use std::collections::BTreeMap;

use mecha_resources::kinds::{Candidate, DecideReason, Explanation, Hint, RejectedBy, ScorePart, Tightest, Verdict};

use crate::canonical::Digest;

/// Candidates that are recorded in full.
pub(crate) const RECORDED: usize = 16;

/// What one filter says of one candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check<'c> {
    /// It will do.
    Pass,
    /// It will not. `detail` tells apart filters that look at a list, such as taints.
    Fail { reason: DecideReason, detail: &'c str },
    /// Nobody knows: enough to keep new ones away, not enough to move what is there.
    Unknown { reason: DecideReason, detail: &'c str },
}

impl Check<'_> {
    pub(crate) const fn fail(reason: DecideReason) -> Self {
        Self::Fail { reason, detail: "" }
    }

    pub(crate) const fn unknown(reason: DecideReason) -> Self {
        Self::Unknown { reason, detail: "" }
    }
}

/// A row of filters over candidates of one type.
pub(crate) trait Chain {
    type Candidate;

    /// How many filters there are, cheap ones first.
    fn filters(&self) -> usize;

    /// What filter number `filter` says. `incumbent` is true for what runs there already.
    fn check<'c>(&'c self, filter: usize, candidate: &'c Self::Candidate, incumbent: bool) -> Check<'c>;

    /// The filter's name in records.
    fn name(&self, filter: usize, detail: &str) -> String;

    /// What it asks for, as in `without REQUIREMENT`.
    fn requirement(&self, filter: usize, detail: &str) -> String;

    /// Why it refused, in one sentence.
    fn sentence(&self, filter: usize, candidate: &Self::Candidate, reason: DecideReason, detail: &str) -> String;

    /// The parts of a candidate's score, one for each weight.
    fn score(&self, candidate: &Self::Candidate, preference: &str, incumbent: bool) -> u32;
}

/// The first refusal of one candidate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refusal<'c> {
    pub(crate) filter: usize,
    pub(crate) reason: DecideReason,
    pub(crate) detail: &'c str,
}

/// Candidates after the filters.
pub(crate) struct Sifted<'c, C> {
    pub(crate) passed: Vec<(&'c str, &'c C)>,
    pub(crate) refused: Vec<(&'c str, &'c C, Refusal<'c>)>,
}

/// The refusal of `candidate` by the filters from `from` on.
fn first_refusal<'c, H: Chain>(
    chain: &'c H,
    candidate: &'c H::Candidate,
    incumbent: bool,
    from: usize,
) -> Option<Refusal<'c>> {
    (from..chain.filters()).find_map(|filter| match chain.check(filter, candidate, incumbent) {
        Check::Pass => None,
        Check::Unknown { .. } if incumbent => None,
        Check::Fail { reason, detail } | Check::Unknown { reason, detail } => Some(Refusal { filter, reason, detail }),
    })
}

pub(crate) fn sift<'c, H: Chain>(
    chain: &'c H,
    candidates: impl Iterator<Item = (&'c str, &'c H::Candidate)>,
    incumbent: impl Fn(&str) -> bool,
) -> Sifted<'c, H::Candidate> {
    let mut sifted = Sifted { passed: Vec::new(), refused: Vec::new() };
    for (name, candidate) in candidates {
        match first_refusal(chain, candidate, incumbent(name), 0) {
            None => sifted.passed.push((name, candidate)),
            Some(refusal) => sifted.refused.push((name, candidate, refusal)),
        }
    }
    sifted
}

/// What is preferred, and how much each counts.
pub(crate) struct Weights<'h>(Vec<(&'h str, u32)>);

impl<'h> Weights<'h> {
    /// The hints; `fallback` where there are none. A preference given twice counts with both weights.
    pub(crate) fn new(hints: &'h [Hint], fallback: &'static [(&'static str, u32)]) -> Self {
        let mut weights: Vec<(&'h str, u32)> = Vec::new();
        for hint in hints.iter().filter(|hint| hint.weight > 0) {
            let weight = hint.weight.min(100);
            match weights.iter_mut().find(|(name, _)| *name == hint.prefer) {
                Some((_, sum)) => *sum += weight,
                None => weights.push((&hint.prefer, weight)),
            }
        }
        Self(if weights.is_empty() { fallback.to_vec() } else { weights })
    }
}

/// A candidate that passed every filter, with its score.
pub(crate) struct Scored<'c, C> {
    pub(crate) name: &'c str,
    pub(crate) candidate: &'c C,
    pub(crate) total: u32,
    pub(crate) parts: Vec<(&'c str, u32, u32)>,
}

/// Scores each and sorts them: the best first, equal ones by name.
pub(crate) fn rank<'c, H: Chain>(
    chain: &'c H,
    weights: &'c Weights<'c>,
    passed: &[(&'c str, &'c H::Candidate)],
    incumbent: impl Fn(&str) -> bool,
    malus: impl Fn(&H::Candidate) -> u32,
) -> Vec<Scored<'c, H::Candidate>> {
    let sum: u64 = weights.0.iter().map(|(_, weight)| u64::from(*weight)).sum();
    let mut ranked: Vec<_> = passed
        .iter()
        .map(|&(name, candidate)| {
            let part = |&(preference, weight): &(&'c str, u32)| {
                (preference, weight, chain.score(candidate, preference, incumbent(name)).min(100))
            };
            let parts: Vec<_> = weights.0.iter().map(part).collect();
            let weighted: u64 = parts.iter().map(|&(_, weight, value)| u64::from(weight) * u64::from(value)).sum();
            // At most 100: a mean of values of at most 100.
            let mean = u32::try_from(weighted / sum.max(1)).unwrap_or(100);
            Scored { name, candidate, total: mean.saturating_sub(malus(candidate)), parts }
        })
        .collect();
    ranked.sort_unstable_by(|a, b| b.total.cmp(&a.total).then_with(|| a.name.cmp(b.name)));
    ranked
}

/// Writes the record of a decision. `selected` are the chosen ones; a chosen one that is neither ranked
/// nor refused is one that nobody sees any more.
pub(crate) fn explain<H: Chain>(
    chain: &H,
    digest: Digest,
    ranked: &[Scored<'_, H::Candidate>],
    refused: &[(&str, &H::Candidate, Refusal<'_>)],
    selected: &[&str],
) -> Explanation {
    let mut tally: BTreeMap<(usize, &str, DecideReason), u32> = BTreeMap::new();
    for (_, _, refusal) in refused {
        *tally.entry((refusal.filter, refusal.detail, refusal.reason)).or_default() += 1;
    }
    let rejected_by = tally.into_iter().map(|((filter, detail, reason), count)| RejectedBy {
        decider: chain.name(filter, detail),
        reason,
        count,
    });
    let chosen = |name: &str| selected.contains(&name);
    let best = ranked.iter().find(|s| chosen(s.name));
    let mut candidates: Vec<Candidate> = Vec::with_capacity(RECORDED);
    let of = |scored: &Scored<'_, H::Candidate>, verdict| Candidate {
        name: scored.name.to_owned(),
        verdict,
        score: Some(scored.total),
        scores: scored
            .parts
            .iter()
            .map(|&(decider, weight, value)| ScorePart { decider: decider.to_owned(), weight, value })
            .collect(),
        decider: None,
        reason: None,
        message: match best {
            Some(best) if verdict == Verdict::Eligible => distance(scored, best),
            _ => String::new(),
        },
    };
    candidates.extend(ranked.iter().filter(|s| chosen(s.name)).take(RECORDED).map(|s| of(s, Verdict::Selected)));
    // A chosen one that was refused is kept for want of a better one; both belong into the record.
    let miss = |(name, candidate, refusal): &(&str, &H::Candidate, Refusal<'_>)| Candidate {
        name: (*name).to_owned(),
        verdict: if chosen(name) { Verdict::Selected } else { Verdict::Rejected },
        score: None,
        scores: Vec::new(),
        decider: Some(chain.name(refusal.filter, refusal.detail)),
        reason: Some(refusal.reason),
        message: chain.sentence(refusal.filter, candidate, refusal.reason, refusal.detail),
    };
    let room = |candidates: &Vec<Candidate>| RECORDED.saturating_sub(candidates.len());
    candidates.extend(refused.iter().filter(|r| chosen(r.0)).take(room(&candidates)).map(miss));
    candidates
        .extend(ranked.iter().filter(|s| !chosen(s.name)).take(room(&candidates)).map(|s| of(s, Verdict::Eligible)));
    // The nearest misses: who got furthest through the filters.
    let mut misses: Vec<_> = refused.iter().filter(|r| !chosen(r.0)).collect();
    let room = room(&candidates).min(misses.len());
    if room > 0 {
        let order = |a: &&(&str, &H::Candidate, Refusal<'_>), b: &&(&str, &H::Candidate, Refusal<'_>)| {
            b.2.filter.cmp(&a.2.filter).then_with(|| a.0.cmp(b.0))
        };
        if room < misses.len() {
            misses.select_nth_unstable_by(room, order);
            misses.truncate(room);
        }
        misses.sort_unstable_by(order);
        candidates.extend(misses.into_iter().map(miss));
    }
    let evaluated = ranked.len() + refused.len();
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Explanation {
        input_digest: digest.to_string(),
        evaluated: count(evaluated),
        eligible: count(ranked.len()),
        truncated: count(evaluated.saturating_sub(candidates.len())),
        rejected_by: rejected_by.collect(),
        tightest: None,
        candidates,
    }
}

/// `22 below pg-eu, mostly latency`.
fn distance<C>(scored: &Scored<'_, C>, best: &Scored<'_, C>) -> String {
    let gap = |&(&(name, weight, theirs), &(_, _, ours)): &(&(&str, u32, u32), &(&str, u32, u32))| {
        let behind = u64::from(weight) * u64::from(theirs.saturating_sub(ours));
        (behind, std::cmp::Reverse(name.to_owned()))
    };
    let worst = best.parts.iter().zip(&scored.parts).max_by_key(gap);
    match best.total.checked_sub(scored.total) {
        None => {
            format!("{} above {}, not for long enough or not by enough to move", scored.total - best.total, best.name)
        }
        Some(0) => format!("as good as {}, which was chosen by name or was there before", best.name),
        Some(below) => match worst {
            Some((part, _)) => format!("{below} below {}, mostly {}", best.name, part.0),
            None => format!("{below} below {}", best.name),
        },
    }
}

/// The requirement without which most of the refused would do.
pub(crate) fn tightest<H: Chain>(
    chain: &H,
    what: &str,
    refused: &[(&str, &H::Candidate, Refusal<'_>)],
    incumbent: impl Fn(&str) -> bool,
) -> Option<Tightest> {
    let mut alone: BTreeMap<(usize, &str), u32> = BTreeMap::new();
    let mut first: BTreeMap<(usize, &str), u32> = BTreeMap::new();
    for (name, candidate, refusal) in refused {
        let key = (refusal.filter, refusal.detail);
        *first.entry(key).or_default() += 1;
        if first_refusal(chain, candidate, incumbent(name), refusal.filter + 1).is_none() {
            *alone.entry(key).or_default() += 1;
        }
    }
    let most = |counts: BTreeMap<(usize, &'_ str), u32>| {
        counts
            .into_iter()
            .max_by(|(a, n), (b, m)| n.cmp(m).then_with(|| b.cmp(a)))
            .map(|((filter, detail), count)| (filter, detail.to_owned(), count))
    };
    let all = refused.len();
    if let Some((filter, detail, admits)) = most(alone) {
        let requirement = chain.requirement(filter, &detail);
        let message = format!("without {requirement}, {admits} of {all} {what} would do");
        return Some(Tightest { decider: chain.name(filter, &detail), admits, message });
    }
    let (filter, detail, count) = most(first)?;
    let requirement = chain.requirement(filter, &detail);
    let message =
        format!("{requirement} alone refuses {count} of {all} {what}, and each of them breaks more than that");
    Some(Tightest { decider: chain.name(filter, &detail), admits: 0, message })
}
