//! The commands, one file each.

mod apply;
mod cluster_doctor;
mod completion;
mod dev;
mod doctor;
mod environment;
mod explain;
mod export;
mod import;
mod inject;
mod invoke;
mod lint;
mod list;
mod logs;
mod metadata;
mod plan;
mod publish;
mod state;
mod status;
mod stop;
mod swap;
mod target;
mod upgrade;
mod version;
mod wait;

pub(crate) use self::apply::ApplyArgs;
pub(crate) use self::dev::DevArgs;
pub(crate) use self::environment::EnvironmentArgs;
pub(crate) use self::explain::ExplainArgs;
pub(crate) use self::export::ExportArgs;
pub(crate) use self::import::ImportArgs;
pub(crate) use self::inject::InjectArgs;
pub(crate) use self::plan::PlanArgs;
pub(crate) use self::status::StatusArgs;
pub(crate) use self::swap::SwapArgs;
pub(crate) use self::wait::WaitArgs;
use crate::args::{Cli, Command};
use crate::error::Result;

/// Runs the command and returns the exit status.
pub(crate) async fn dispatch(cli: Cli) -> Result<u8> {
    match cli.command {
        Command::Run(args) => crate::run::run(*args).await,
        Command::List(args) => list::run(&args),
        Command::Stop(args) => stop::run(&args).await,
        Command::Upgrade(args) => upgrade::run(&args).await,
        Command::Logs(args) => logs::run(&args).await,
        Command::Invoke(args) => invoke::run(&args).await,
        Command::Publish(args) => publish::run(&args).await,
        Command::State(args) => state::run(args.action).await,
        Command::Components(args) => metadata::components(&args).await,
        Command::Metadata(args) => metadata::metadata(&args).await,
        Command::Swap(args) => swap::run(&args).await,
        Command::Dev(args) => dev::run(&args).await,
        Command::Plan(args) => plan::run(&args).await,
        Command::Explain(args) => explain::run(&args).await,
        Command::Apply(args) => apply::run(&args).await,
        Command::Wait(args) => wait::run(&args).await,
        Command::Status(args) => status::run(&args).await,
        Command::Environment(args) => environment::run(&args).await,
        Command::Lint(args) => lint::run(&args),
        Command::Doctor(args) => doctor::run(&args).await,
        Command::Inject(args) => inject::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Version(args) => version::run(&args).await,
        Command::Completion(args) => completion::run(&args),
    }
}
