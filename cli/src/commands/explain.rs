//! `mecha explain`: what an error code means, or why a claim has its backend.

use super::plan::now_ms;
use crate::cluster::ClusterArgs;
use crate::cluster::view::View;
use crate::error::{CliError, OK, Result};
use crate::kinds::{self, show};
use crate::output;
use clap::{Args, ValueHint};
use mecha_decide::{Consent, Evaluation};
use std::path::PathBuf;

/// Codes and the pages about them.
const PAGES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/error_pages.rs"));

/// Tell what an error code means, or why a claim has its backend and not another one.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mecha explain ERR_STATE_GET\n  \
    mecha explain claim orders --dir platform\n  \
    mecha explain claim team-a-dev-jp7j4/orders --context production")]
pub(crate) struct ExplainArgs {
    /// An error code, or the word `claim`
    #[arg(value_name = "CODE|claim")]
    subject: String,
    /// Name of the claim, or namespace/name
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Folder with the documents to decide by, instead of a cluster
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, requires = "name",
        conflicts_with_all = ["kubeconfig", "context"])]
    dir: Option<PathBuf>,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(crate) async fn run(args: &ExplainArgs) -> Result<u8> {
    let text = match (args.subject.as_str(), &args.name, &args.dir) {
        ("claim", Some(name), Some(dir)) => {
            let world = kinds::world(&kinds::read(dir)?);
            claim(&world.evaluate(&world.memory(), &Consent::default(), 0), name)?
        }
        ("claim", Some(name), None) => {
            let view = View::read(&args.cluster.client().await?).await?;
            claim(&view.evaluate(&view.world(), false, now_ms()), name)?
        }
        ("claim", None, _) => {
            return Err(CliError::usage("explain", "which claim?")
                .hint("mecha explain claim NAME, for a folder with --dir DIR"));
        }
        (code, None, None) => page(code)?,
        (other, ..) => {
            return Err(CliError::usage("explain", format!("{other:?} cannot be explained by documents"))
                .hint("mecha explain claim NAME --dir DIR"));
        }
    };
    output::write(text.as_bytes())?;
    Ok(OK)
}

fn page(code: &str) -> Result<String> {
    let wanted = code.to_uppercase();
    let found = PAGES.iter().find(|(known, _)| *known == wanted);
    let Some((_, page)) = found else {
        let close = mecha_resources::did_you_mean(&wanted, PAGES.iter().map(|(code, _)| *code));
        let error = CliError::usage("unknown-code", format!("no error has the code {code}"));
        return Err(match close {
            Some(close) => error.hint(format!("did you mean {close}?")),
            None => error.hint("codes look like ERR_STATE_GET; docs/reference/errors.md lists them"),
        });
    };
    let text = page.lines().filter(|line| !line.starts_with("<!--") && !line.starts_with("[All codes]"));
    let text = text.collect::<Vec<_>>().join("\n");
    Ok(format!("{}\n", text.trim()))
}

fn claim(evaluation: &Evaluation, name: &str) -> Result<String> {
    let fits = |key: &str| key == name || key.rsplit('/').next() == Some(name);
    let found: Vec<_> = evaluation.claims.iter().filter(|outcome| fits(&outcome.claim)).collect();
    if found.is_empty() {
        let names: Vec<_> = evaluation.claims.iter().map(|outcome| outcome.claim.as_str()).collect();
        return Err(CliError::usage("unknown-claim", format!("no CapabilityClaim is called {name}"))
            .hint(format!("there are: {}", names.join(", "))));
    }
    Ok(found.into_iter().map(show::explanation).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_has_a_page_and_a_typing_mistake_a_hint() {
        let text = page("err_state_get").unwrap();
        assert!(text.starts_with("# ERR_STATE_GET") && text.contains("## Next step"), "{text}");
        assert!(!text.contains("<!--"));
        let error = page("ERR_STATE_GOT").unwrap_err();
        assert!(error.to_string().contains("did you mean ERR_STATE_GET"), "{error}");
    }
}
