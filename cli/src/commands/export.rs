//! `mecha export`: what other systems need to know of the kinds.

use crate::error::{OK, Result};
use crate::output;
use clap::{Args, Subcommand};

/// Traits of KubeVela that become claims and placements.
const OAM: [&str; 2] = [
    include_str!("../../../deploy/oam/mecha-capability.yaml"),
    include_str!("../../../deploy/oam/mecha-placement.yaml"),
];
/// The Promise of Kratix whose requests become claims.
const KRATIX: &str = include_str!("../../../deploy/kratix/promise.yaml");
/// The image that the Promise names.
const IMAGE: &str = concat!("mecha-control:", env!("CARGO_PKG_VERSION"));

/// Print definitions with which other systems make claims and placements.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    #[command(subcommand)]
    system: System,
}

#[derive(Debug, Subcommand)]
enum System {
    /// TraitDefinitions of the Open Application Model, for KubeVela.
    ///
    /// An Application's trait mecha-capability becomes a CapabilityClaim, its trait mecha-placement an AppPlacement.
    #[command(after_help = "Examples:\n  \
        mecha export oam | kubectl apply -n vela-system -f -     (for every Application)\n  \
        mecha import oam application.yaml                        (the same without KubeVela)")]
    Oam,
    /// A Promise of Kratix: each request becomes a CapabilityClaim.
    ///
    /// Claims go to the Destinations with the label mecha.dev/hub=true.
    #[command(after_help = "Examples:\n  \
        mecha export kratix --image registry.example.org/mecha-control:0.1.0 | kubectl apply -f -")]
    Kratix {
        /// Image that its pipeline runs; it holds this program as /mecha
        #[arg(long, value_name = "IMAGE", default_value = IMAGE)]
        image: String,
    },
}

pub(crate) fn run(args: &ExportArgs) -> Result<u8> {
    let text = match &args.system {
        System::Oam => OAM.join("---\n"),
        System::Kratix { image } => promise(image),
    };
    output::write(text.as_bytes())?;
    Ok(OK)
}

fn promise(image: &str) -> String {
    // Quoted: JSON strings are YAML strings, whatever they hold.
    let quoted = serde_json::Value::from(image).to_string();
    KRATIX.replace(&format!("image: {IMAGE}"), &format!("image: {quoted}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_promise_runs_the_image_that_is_named() {
        let image = "registry.example.org/mecha-control:2 # not a comment";
        let promise: serde_json::Value = serde_saphyr::from_str(&promise(image)).unwrap();
        let container = &promise["spec"]["workflows"]["resource"]["configure"][0]["spec"]["containers"][0];
        assert_eq!(container["image"], image);
    }
}
