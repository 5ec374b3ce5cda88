//! Stable error codes. Clients match them; a code is never renamed.

/// The group a code belongs to; label `category` of the error metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the documentation")]
pub enum Category {
    Actor,
    Workflow,
    State,
    Configuration,
    Crypto,
    Secret,
    PubSub,
    Conversation,
    ServiceInvocation,
    Binding,
    Lock,
    Job,
    Health,
    Common,
}

impl Category {
    /// Label value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Actor => "actor",
            Self::Workflow => "workflow",
            Self::State => "state",
            Self::Configuration => "configuration",
            Self::Crypto => "crypto",
            Self::Secret => "secret",
            Self::PubSub => "pubsub",
            Self::Conversation => "conversation",
            Self::ServiceInvocation => "service-invocation",
            Self::Binding => "binding",
            Self::Lock => "lock",
            Self::Job => "job",
            Self::Health => "health",
            Self::Common => "common",
        }
    }
}

macro_rules! codes {
    ($($name:ident $text:literal $category:ident $doc:literal)*) => {
        /// A stable error code of the API.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code {
            $(#[doc = $doc] $name,)*
        }

        impl Code {
            /// Every code, in the order of the reference.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The code on the wire.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Its group.
            #[must_use]
            pub const fn category(self) -> Category {
                match self { $(Self::$name => Category::$category,)* }
            }

            /// One sentence for the reference: what happened.
            #[must_use]
            pub const fn summary(self) -> &'static str {
                match self { $(Self::$name => $doc,)* }
            }
        }
    };
}

codes! {
    Generic "ERROR" Common "Something failed that has no code of its own."
    BadRequest "ERR_BAD_REQUEST" Common "The request is not valid."
    BodyRead "ERR_BODY_READ" Common "The request body could not be read."
    ApiUnimplemented "ERR_API_UNIMPLEMENTED" Common "This API is not built yet."
    AppChannelNil "ERR_APP_CHANNEL_NIL" Common "The call needs an app, and the sidecar was started without an app port."
    Internal "ERR_INTERNAL" Common "The sidecar met a defect or a broken answer."
    MalformedRequest "ERR_MALFORMED_REQUEST" Common "The request could not be decoded, or a required member is missing."
    MalformedRequestData "ERR_MALFORMED_REQUEST_DATA" Common "The data of the request could not be decoded."
    MalformedResponse "ERR_MALFORMED_RESPONSE" Common "The answer could not be encoded."
    PermissionDenied "ERR_PERMISSION_DENIED" Secret "A policy forbids the call."
    HealthNotReady "ERR_HEALTH_NOT_READY" Health "The sidecar is not ready yet."
    OutboundHealthNotReady "ERR_OUTBOUND_HEALTH_NOT_READY" Health "The sidecar's outgoing APIs are not ready yet."
    HealthAppIdNotMatch "ERR_HEALTH_APPID_NOT_MATCH" Health "The health check named another app id."

    StateStoreNotFound "ERR_STATE_STORE_NOT_FOUND" State "No state store has this name."
    StateStoreNotConfigured "ERR_STATE_STORE_NOT_CONFIGURED" State "No state store is configured at all."
    StateGet "ERR_STATE_GET" State "Reading a key failed."
    StateSave "ERR_STATE_SAVE" State "Saving failed; nothing was written for the items named."
    StateDelete "ERR_STATE_DELETE" State "Deleting a key failed."
    StateBulkGet "ERR_STATE_BULK_GET" State "Reading several keys failed."
    StateBulkDelete "ERR_STATE_BULK_DELETE" State "Deleting several keys failed."
    StateTransaction "ERR_STATE_TRANSACTION" State "The transaction failed; nothing was written."
    StateStoreNotSupported "ERR_STATE_STORE_NOT_SUPPORTED" State "The state store does not have this power."
    StateStoreTooManyTransactions "ERR_STATE_STORE_TOO_MANY_TRANSACTIONS" State "The transaction has more operations than the store takes."
    StateQuery "ERR_STATE_QUERY" State "The query failed."
    NotSupportedStateOperation "ERR_NOT_SUPPORTED_STATE_OPERATION" State "A transaction knows the operations upsert and delete."

    PubSubNotFound "ERR_PUBSUB_NOT_FOUND" PubSub "No pub/sub component has this name."
    PubSubNotConfigured "ERR_PUBSUB_NOT_CONFIGURED" PubSub "No pub/sub component is configured at all."
    PubSubEmpty "ERR_PUBSUB_EMPTY" PubSub "The name of the pub/sub component is empty."
    TopicNameEmpty "ERR_TOPIC_NAME_EMPTY" PubSub "The topic is empty."
    PubSubRequestMetadata "ERR_PUBSUB_REQUEST_METADATA" PubSub "The request metadata of a publish is not valid."
    PubSubCloudEventsSer "ERR_PUBSUB_CLOUD_EVENTS_SER" PubSub "No CloudEvent can be made of the request."
    PubSubEventsSer "ERR_PUBSUB_EVENTS_SER" PubSub "The entries of a bulk publish could not be decoded."
    PubSubForbidden "ERR_PUBSUB_FORBIDDEN" PubSub "The component's scopes do not allow this app to use the topic."
    PubSubPublishMessage "ERR_PUBSUB_PUBLISH_MESSAGE" PubSub "The broker did not take the message."
    PublishOutbox "ERR_PUBLISH_OUTBOX" PubSub "The outbox message could not be published."

    DirectInvoke "ERR_DIRECT_INVOKE" ServiceInvocation "The other app could not be called."

    InvokeOutputBinding "ERR_INVOKE_OUTPUT_BINDING" Binding "The output binding failed."

    SecretStoresNotConfigured "ERR_SECRET_STORES_NOT_CONFIGURED" Secret "No secret store is configured at all."
    SecretStoreNotFound "ERR_SECRET_STORE_NOT_FOUND" Secret "No secret store has this name."
    SecretGet "ERR_SECRET_GET" Secret "The secret could not be read."

    ConfigurationStoreNotConfigured "ERR_CONFIGURATION_STORE_NOT_CONFIGURED" Configuration "No configuration store is configured at all."
    ConfigurationStoreNotFound "ERR_CONFIGURATION_STORE_NOT_FOUND" Configuration "No configuration store has this name."
    ConfigurationGet "ERR_CONFIGURATION_GET" Configuration "The configuration could not be read."
    ConfigurationSubscribe "ERR_CONFIGURATION_SUBSCRIBE" Configuration "The configuration could not be watched."
    ConfigurationUnsubscribe "ERR_CONFIGURATION_UNSUBSCRIBE" Configuration "No watch has this id."

    LockStoreNotConfigured "ERR_LOCK_STORE_NOT_CONFIGURED" Lock "No lock store is configured at all."
    LockStoreNotFound "ERR_LOCK_STORE_NOT_FOUND" Lock "No lock store has this name."
    TryLock "ERR_TRY_LOCK" Lock "The lock could not be asked for."
    Unlock "ERR_UNLOCK" Lock "The lock could not be released."

    CryptoProvidersNotConfigured "ERR_CRYPTO_PROVIDERS_NOT_CONFIGURED" Crypto "No crypto provider is configured at all."
    CryptoProviderNotFound "ERR_CRYPTO_PROVIDER_NOT_FOUND" Crypto "No crypto provider has this name."
    CryptoKey "ERR_CRYPTO_KEY" Crypto "The key could not be read."
    Crypto "ERR_CRYPTO" Crypto "The operation failed."

    ActorNoPlacement "ERR_ACTOR_NO_PLACEMENT" Actor "Actors need the placement service, and none is configured."
    ActorNoAppChannel "ERR_ACTOR_NO_APP_CHANNEL" Actor "Actors need an app, and the sidecar was started without an app port."
    ActorRuntimeNotFound "ERR_ACTOR_RUNTIME_NOT_FOUND" Actor "The actor runtime is not running."
    ActorInstanceMissing "ERR_ACTOR_INSTANCE_MISSING" Actor "This actor is not active here."
    ActorInvokeMethod "ERR_ACTOR_INVOKE_METHOD" Actor "The actor's method failed."
    ActorStateGet "ERR_ACTOR_STATE_GET" Actor "The actor's state could not be read."
    ActorStateTransactionSave "ERR_ACTOR_STATE_TRANSACTION_SAVE" Actor "The actor's state could not be saved."
    ActorReminderCreate "ERR_ACTOR_REMINDER_CREATE" Actor "The reminder could not be made."
    ActorReminderGet "ERR_ACTOR_REMINDER_GET" Actor "The reminder could not be read."
    ActorReminderDelete "ERR_ACTOR_REMINDER_DELETE" Actor "The reminder could not be removed."
    ActorTimerCreate "ERR_ACTOR_TIMER_CREATE" Actor "The timer could not be made."

    WorkflowStart "ERR_START_WORKFLOW" Workflow "The workflow could not be started."
    WorkflowGet "ERR_GET_WORKFLOW" Workflow "The workflow could not be read."
    WorkflowTerminate "ERR_TERMINATE_WORKFLOW" Workflow "The workflow could not be terminated."
    WorkflowPause "ERR_PAUSE_WORKFLOW" Workflow "The workflow could not be paused."
    WorkflowResume "ERR_RESUME_WORKFLOW" Workflow "The workflow could not be resumed."
    WorkflowPurge "ERR_PURGE_WORKFLOW" Workflow "The workflow could not be purged."
    WorkflowRaiseEvent "ERR_RAISE_EVENT_WORKFLOW" Workflow "The event could not be raised."
    WorkflowComponentNotFound "ERR_WORKFLOW_COMPONENT_NOT_FOUND" Workflow "No workflow component has this name."

    SchedulerScheduleJob "DAPR_SCHEDULER_SCHEDULE_JOB" Job "The job could not be scheduled."
    SchedulerGetJob "DAPR_SCHEDULER_GET_JOB" Job "The job could not be read."
    SchedulerListJobs "DAPR_SCHEDULER_LIST_JOBS" Job "The jobs could not be listed."
    SchedulerDeleteJob "DAPR_SCHEDULER_DELETE_JOB" Job "The job could not be deleted."

    ConversationNotFound "ERR_CONVERSATION_NOT_FOUND" Conversation "No conversation component has this name."
    ConversationInvoke "ERR_CONVERSATION_INVOKE" Conversation "The conversation failed."
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn codes_are_unique() {
        let texts: HashSet<_> = Code::ALL.iter().map(|c| c.as_str()).collect();
        assert_eq!(texts.len(), Code::ALL.len());
    }
}
