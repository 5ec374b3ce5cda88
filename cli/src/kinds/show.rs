//! Decisions and plans in words.

use mecha_decide::{Choice, ClaimOutcome, MoveWhy, Plan, StayWhy};
use mecha_resources::kinds::Verdict;

/// One line on what becomes of a claim.
pub(crate) fn headline(outcome: &ClaimOutcome) -> String {
    let claim = &outcome.claim;
    let Some(decision) = &outcome.decision else {
        let why = outcome.problem.as_ref().map(|(reason, message)| format!("{message} ({reason})"));
        return format!("{claim}: {}", why.unwrap_or_default());
    };
    match &decision.choice {
        Choice::Bind { to } => match &outcome.problem {
            Some((_, why)) => format!("{claim}: pending; {why}"),
            None => format!("{claim}: {to}"),
        },
        Choice::Stay { at, why } => match why {
            StayWhy::Best => format!("{claim}: stays at {at}"),
            StayWhy::GainTooSmall => format!("{claim}: stays at {at}; a better one is not better by enough"),
            StayWhy::GainNotHeld => format!("{claim}: stays at {at}; a better one is not better for long enough yet"),
            StayWhy::NoCandidate => format!("{claim}: stays at {at}, which no longer does; nothing else would do"),
            StayWhy::Unseen => format!("{claim}: stays at {at}, which no document describes"),
        },
        Choice::Move { from, to, why } => {
            let why = match why {
                MoveWhy::Contradicted { message, decider, .. } => format!("{from}: {message} ({decider})"),
                MoveWhy::Better { gain } => format!("{to} is {gain} points better"),
            };
            match &outcome.blocked {
                None => format!("{claim}: {from} -> {to} ({}); {why}", outcome.strategy),
                Some(blocked) => format!("{claim}: stays at {from}, to move to {to}; {blocked}"),
            }
        }
        Choice::Pending => {
            let why = outcome.problem.as_ref().map(|(_, message)| message.as_str()).unwrap_or_default();
            format!("{claim}: pending; {why}")
        }
    }
}

/// Why this backend and why not the others.
pub(crate) fn explanation(outcome: &ClaimOutcome) -> String {
    let mut out = format!("{}\n", headline(outcome));
    if !outcome.environment.is_empty() {
        out.push_str(&format!("  environment   {}\n", outcome.environment));
    }
    out.push_str(&format!("  kind          {}\n", outcome.kind));
    if !outcome.required.is_empty() {
        out.push_str(&format!("  features      {}\n", outcome.required.join(", ")));
    }
    let Some(decision) = &outcome.decision else { return out };
    let explanation = &decision.explanation;
    out.push_str(&format!("  candidates    {} looked at, {} would do\n", explanation.evaluated, explanation.eligible));
    for candidate in &explanation.candidates {
        let verdict = match candidate.verdict {
            Verdict::Selected => "selected",
            Verdict::Eligible => "eligible",
            Verdict::Rejected => "rejected",
        };
        let parts: Vec<_> =
            candidate.scores.iter().map(|p| format!("{} {}x{}", p.decider, p.value, p.weight)).collect();
        let score = candidate.score.map(|score| format!("score {score} ({})", parts.join(", ")));
        let refusal = candidate.decider.as_ref().zip(candidate.reason).map(|(d, r)| format!("{d}/{r}"));
        let message = Some(candidate.message.clone()).filter(|message| !message.is_empty());
        let facts: Vec<_> = [score, refusal, message].into_iter().flatten().collect();
        out.push_str(&format!("    {verdict}  {}: {}\n", candidate.name, facts.join("; ")));
    }
    if explanation.truncated > 0 {
        out.push_str(&format!("    and {} more\n", explanation.truncated));
    }
    for rejected in &explanation.rejected_by {
        out.push_str(&format!("  refused by    {}: {} ({})\n", rejected.decider, rejected.count, rejected.reason));
    }
    if let Some(tightest) = &explanation.tightest {
        out.push_str(&format!("  tightest      {}\n", tightest.message));
    }
    out.push_str(&format!("  inputs        {}\n", explanation.input_digest));
    out
}

/// A plan for people.
pub(crate) fn plan(plan: &Plan) -> String {
    let mut out = String::new();
    for bind in &plan.binds {
        out.push_str(&format!("+ {}: {}\n", bind.claim, bind.to));
    }
    for planned in &plan.moves {
        let from = planned.from.as_deref().unwrap_or("-");
        out.push_str(&format!("~ {}: {from} -> {} ({})\n", planned.claim, planned.to, planned.strategy));
        out.push_str(&format!("    why      {}\n", planned.why));
        if !planned.scopes.is_empty() {
            out.push_str(&format!("    apps     {}\n", planned.scopes.join(", ")));
        }
        if let Some(blocked) = &planned.blocked {
            out.push_str(&format!("    blocked  {blocked}\n"));
        }
    }
    for stuck in &plan.stuck {
        out.push_str(&format!("! {}: {}\n", stuck.claim, stuck.why));
    }
    let (binds, moves, stuck) = (plan.binds.len(), plan.moves.len(), plan.stuck.len());
    out.push_str(&format!(
        "{binds} to bind, {moves} to move, {stuck} stuck, {} unchanged\nplan {}\n",
        plan.unchanged, plan.digest
    ));
    out
}
