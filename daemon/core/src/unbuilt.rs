//! APIs whose handlers are not built yet: one table for both fronts and the docs.

use mecha_components_api::ErrorKind;

use crate::codes::Code;
use crate::error::ApiError;

/// An API that only answers with its error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the documentation")]
pub enum Unbuilt {
    ActorInvoke,
    ActorState,
    ActorStateSave,
    ActorReminder,
    ActorTimer,
    ActorEvents,
    JobSchedule,
    JobGet,
    JobDelete,
    JobList,
    WorkflowStart,
    WorkflowGet,
    WorkflowTerminate,
    WorkflowPause,
    WorkflowResume,
    WorkflowPurge,
    WorkflowRaiseEvent,
    Crypto,
    SubtleCrypto,
    Conversation,
}

impl Unbuilt {
    /// Every entry, in the order of the docs.
    pub const ALL: &'static [Self] = &[
        Self::ActorInvoke,
        Self::ActorState,
        Self::ActorStateSave,
        Self::ActorReminder,
        Self::ActorTimer,
        Self::ActorEvents,
        Self::JobSchedule,
        Self::JobGet,
        Self::JobDelete,
        Self::JobList,
        Self::WorkflowStart,
        Self::WorkflowGet,
        Self::WorkflowTerminate,
        Self::WorkflowPause,
        Self::WorkflowResume,
        Self::WorkflowPurge,
        Self::WorkflowRaiseEvent,
        Self::Crypto,
        Self::SubtleCrypto,
        Self::Conversation,
    ];

    /// The answer: the one the incumbent gives where the service behind it is not configured,
    /// and "not implemented" where it has none. `name` is the component the caller named.
    #[must_use]
    pub fn error(self, name: &str) -> ApiError {
        let no_scheduler = |code, what: &str| {
            ApiError::new(code, ErrorKind::Internal, format!("failed to {what} due to: scheduler is not configured"))
        };
        let no_workflow = || {
            ApiError::new(
                Code::WorkflowComponentNotFound,
                ErrorKind::InvalidArgument,
                format!("failed to find a workflow component named '{name}'"),
            )
        };
        match self {
            Self::ActorInvoke
            | Self::ActorState
            | Self::ActorStateSave
            | Self::ActorReminder
            | Self::ActorTimer
            | Self::ActorEvents => ApiError::new(
                Code::ActorNoPlacement,
                ErrorKind::FailedPrecondition,
                "placement service is not configured",
            ),
            Self::JobSchedule => no_scheduler(Code::SchedulerScheduleJob, "schedule job"),
            Self::JobGet => no_scheduler(Code::SchedulerGetJob, "get job"),
            Self::JobDelete => no_scheduler(Code::SchedulerDeleteJob, "delete job"),
            Self::JobList => no_scheduler(Code::SchedulerListJobs, "list jobs"),
            Self::WorkflowStart
            | Self::WorkflowGet
            | Self::WorkflowTerminate
            | Self::WorkflowPause
            | Self::WorkflowResume
            | Self::WorkflowPurge
            | Self::WorkflowRaiseEvent => no_workflow(),
            Self::Crypto => ApiError::new(
                Code::CryptoProvidersNotConfigured,
                ErrorKind::FailedPrecondition,
                "crypto providers not configured",
            ),
            Self::SubtleCrypto => ApiError::unimplemented(),
            Self::Conversation => ApiError::new(
                Code::ConversationNotFound,
                ErrorKind::InvalidArgument,
                format!("failed finding conversation component with key {name}"),
            ),
        }
    }
}
