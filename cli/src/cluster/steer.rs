//! What people say to moves: agree, go back, go on.

use super::failed;
use super::view::{View, class};
use crate::error::{CliError, Result};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use mecha_apiserver::{CapabilityBinding, EnvironmentClass, FailureKind, call};
use serde_json::json;

/// Owner of the agreement, so that files put by `mecha apply` neither hold nor remove it.
const APPROVER: &str = "mecha-approve";
/// Tries against others who write the same object.
const TRIES: usize = 5;

/// What a person wants of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Back to the old backend.
    Abort,
    /// On, though the old side is not empty.
    Proceed,
}

impl Wish {
    /// The annotation that the hub reads.
    const fn annotation(self) -> &'static str {
        match self {
            Self::Abort => "mecha.dev/abort-swap",
            Self::Proceed => "mecha.dev/proceed-swap",
        }
    }
}

/// Agrees to the plan of a class. The same agreement a second time changes nothing.
pub(crate) async fn approve(client: &Client, name: &str, digest: &str) -> Result<String> {
    let stored = class(client, name).await?;
    let status = stored.status.unwrap_or_default();
    if stored.spec.approved_swap.as_deref() == Some(digest)
        && (status.pending_plan == digest || status.approved.is_some_and(|approved| approved.digest == digest))
    {
        return Ok(format!("EnvironmentClass {name}: this plan was agreed to already"));
    }
    if status.pending_plan != digest {
        let error = |why: String| CliError::new("stale-plan", format!("EnvironmentClass {name}: {why}"));
        return Err(match status.pending_plan.as_str() {
            "" => error("no move waits for a person".to_owned())
                .hint("mecha plan FILE shows what an edit would move; put it first with mecha apply FILE"),
            pending => error(format!("the plan that waits is {pending}, not this one: other claims would move by now"))
                .hint("mecha plan shows it"),
        });
    }
    let api: Api<EnvironmentClass> = Api::all(client.clone());
    // With the version that was read: what is agreed to is what was looked at.
    let patch = json!({
        "metadata": {"resourceVersion": stored.metadata.resource_version},
        "spec": {"approvedSwap": digest},
    });
    let what = format!("agreeing to the plan of EnvironmentClass {name}");
    let params = PatchParams { field_manager: Some(APPROVER.to_owned()), ..PatchParams::default() };
    call(api.patch(name, &params, &Patch::Merge(&patch))).await.map_err(|failure| match failure.kind {
        FailureKind::Conflict => CliError::new("stale-plan", format!("{what}: somebody else has changed it just now"))
            .hint("run the command again"),
        _ => failed(&what, &failure),
    })?;
    let moves = status.pending_moves.unwrap_or_default();
    Ok(format!("EnvironmentClass {name}: agreed to {moves} moves; mecha wait class/{name} waits for their end"))
}

/// Names the claim in the annotation of every binding in which it is on the move.
pub(crate) async fn wish(client: &Client, claim: &str, wish: Wish) -> Result<String> {
    let view = View::read(client).await?;
    let fits = |key: &str| key == claim || key.rsplit('/').next() == Some(claim);
    let moving: Vec<_> = view.moves().filter(|(key, ..)| fits(key)).collect();
    let mut keys: Vec<&str> = moving.iter().map(|(key, ..)| key.as_str()).collect();
    keys.dedup();
    match keys.as_slice() {
        [] => {
            let all: Vec<_> = view.moves().map(|(key, ..)| key).collect();
            let hint = match all.is_empty() {
                true => "no claim is; a class that is edited back goes back, too".to_owned(),
                false => format!("these are: {}", all.join(", ")),
            };
            return Err(CliError::new("not-moving", format!("no claim called {claim} is on the move")).hint(hint));
        }
        [_] => {}
        several => {
            return Err(CliError::usage("claim", format!("{claim} may be {}", several.join(" or ")))
                .hint("name it as NAMESPACE/NAME"));
        }
    }
    for (key, binding, _) in &moving {
        let name = key.rsplit('/').next().unwrap_or(key);
        note(client, binding, name, wish).await?;
    }
    let key = keys.first().copied().unwrap_or(claim);
    Ok(match wish {
        Wish::Abort => format!("{key}: the control part was asked to go back; mecha status shows how far it is"),
        Wish::Proceed => format!("{key}: the control part was asked to go on; mecha status shows how far it is"),
    })
}

async fn note(client: &Client, binding: &CapabilityBinding, claim: &str, wish: Wish) -> Result<()> {
    let namespace = binding.metadata.namespace.as_deref().unwrap_or_default();
    let name = binding.metadata.name.as_deref().unwrap_or_default();
    let what = format!("noting the wish in CapabilityBinding {namespace}/{name}");
    let api: Api<CapabilityBinding> = Api::namespaced(client.clone(), namespace);
    let mut last = None;
    for _ in 0..TRIES {
        let stored = call(api.get(name)).await.map_err(|failure| failed(&what, &failure))?;
        let annotations = stored.metadata.annotations.unwrap_or_default();
        let before = annotations.get(wish.annotation()).map(String::as_str).unwrap_or_default();
        let mut names: Vec<&str> = before.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
        if names.contains(&claim) {
            return Ok(());
        }
        names.push(claim);
        // With the version that was read: nobody's wish is lost.
        let patch = json!({"metadata": {
            "resourceVersion": stored.metadata.resource_version,
            "annotations": {(wish.annotation()): names.join(",")},
        }});
        match call(api.patch(name, &PatchParams::default(), &Patch::Merge(&patch))).await {
            Ok(_) => return Ok(()),
            Err(failure) if failure.kind == FailureKind::Conflict => last = Some(failure),
            Err(failure) => return Err(failed(&what, &failure)),
        }
    }
    Err(match last {
        Some(failure) => failed(&what, &failure),
        None => CliError::new("cluster-conflict", what),
    })
}
