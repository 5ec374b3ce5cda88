//! The one table of methods: which handler answers, and which API of the allow and deny lists
//! it belongs to.

use std::pin::Pin;

use mecha_core::unbuilt::Unbuilt;
use mecha_core::{ApiError, Cx, Front};
use mecha_proto::common::InvokeResponse;
use mecha_proto::runtime::dapr_server::Dapr;
use mecha_proto::runtime::*;
use tonic::{Request, Response, Status, Streaming};

use super::notes::{Noted, Notes};
use super::{GrpcApi, bindings, configuration, errors, invoke, lock, metadata, pubsub, secrets, state, stream};

/// Name of the service.
pub(super) const SERVICE: &str = "dapr.proto.runtime.v1.Dapr";

/// Messages of a streamed answer.
pub(super) type Stream<T> = Pin<Box<dyn futures_util::Stream<Item = Result<T, Status>> + Send>>;

/// API and version of a method, as allow and deny lists name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) api: &'static str,
    pub(super) version: &'static str,
}

/// Takes the context of a call out of its request.
pub(super) fn context<T>(request: &mut Request<T>) -> Cx {
    request.extensions_mut().remove().unwrap_or_else(|| Cx::new(Front::Grpc))
}

impl GrpcApi {
    /// The status of an error, which is counted here and nowhere else.
    pub(super) fn fail(&self, e: &ApiError) -> Status {
        self.core.metrics.error_code(e.code().category().as_str(), e.code().as_str());
        errors::status(e)
    }

    fn seal<T>(&self, result: Result<T, ApiError>) -> Result<Response<T>, Status> {
        result.map(Response::new).map_err(|e| self.fail(&e))
    }
}

/// Writes the service out of the table. `plain`: the handler gets core, context and message.
/// `whole`: it gets the request and answers the response. `unbuilt`: the error of the API, for
/// the component that the request names.
macro_rules! serve {
    (
        streams { $($stream:ident = $item:ty;)* }
        plain { $($name:literal $method:ident($req:ty) -> $res:ty, $api:literal $version:literal => $handler:path;)* }
        whole { $($w_name:literal $w_method:ident($w_req:ty) -> $w_res:ty, $w_api:literal $w_version:literal
            => $w_handler:path;)* }
        unbuilt { $($u_name:literal $u_method:ident($u_req:ty) -> $u_res:ty, $u_api:literal $u_version:literal
            => $what:ident $(of $field:ident)?;)* }
    ) => {
        #[tonic::async_trait]
        impl Dapr for GrpcApi {
            $(type $stream = Stream<$item>;)*
            $(async fn $method(&self, mut request: Request<$req>) -> Result<Response<$res>, Status> {
                let cx = context(&mut request);
                if let Some(notes) = request.extensions().get::<Notes>() {
                    request.get_ref().note(notes);
                }
                self.seal($handler(&self.core, &cx, request.into_inner()).await)
            })*
            $(async fn $w_method(&self, request: Request<$w_req>) -> Result<Response<$w_res>, Status> {
                $w_handler(self, request).await
            })*
            $(async fn $u_method(&self, _request: Request<$u_req>) -> Result<Response<$u_res>, Status> {
                let name = [$(_request.get_ref().$field.as_str(),)? ""][0];
                Err(self.fail(&Unbuilt::$what.error(name)))
            })*
        }

        /// Looks up a method of the service by its name.
        pub(super) fn find(method: &str) -> Option<Entry> {
            Some(match method {
                $($name => Entry { api: $api, version: $version },)*
                $($w_name => Entry { api: $w_api, version: $w_version },)*
                $($u_name => Entry { api: $u_api, version: $u_version },)*
                _ => return None,
            })
        }
    };
}

serve! {
    streams {
        SubscribeTopicEventsAlpha1Stream = SubscribeTopicEventsResponseAlpha1;
        SubscribeActorEventsAlpha1Stream = SubscribeActorEventsResponseAlpha1;
        SubscribeConfigurationAlpha1Stream = SubscribeConfigurationResponse;
        SubscribeConfigurationStream = SubscribeConfigurationResponse;
        EncryptAlpha1Stream = EncryptResponse;
        DecryptAlpha1Stream = DecryptResponse;
    }
    plain {
        "GetState" get_state(GetStateRequest) -> GetStateResponse, "state" "v1" => state::get;
        "GetBulkState" get_bulk_state(GetBulkStateRequest) -> GetBulkStateResponse, "state" "v1" => state::get_bulk;
        "SaveState" save_state(SaveStateRequest) -> (), "state" "v1" => state::save;
        "DeleteState" delete_state(DeleteStateRequest) -> (), "state" "v1" => state::delete;
        "DeleteBulkState" delete_bulk_state(DeleteBulkStateRequest) -> (), "state" "v1" => state::delete_bulk;
        "ExecuteStateTransaction" execute_state_transaction(ExecuteStateTransactionRequest) -> (), "state" "v1" => state::transact;
        "QueryStateAlpha1" query_state_alpha1(QueryStateRequest) -> QueryStateResponse, "state" "v1alpha1" => state::query;
        "PublishEvent" publish_event(PublishEventRequest) -> (), "publish" "v1" => pubsub::publish;
        "BulkPublishEvent" bulk_publish_event(BulkPublishRequest) -> BulkPublishResponse, "publish" "v1" => pubsub::publish_bulk;
        "BulkPublishEventAlpha1" bulk_publish_event_alpha1(BulkPublishRequest) -> BulkPublishResponse, "publish" "v1alpha1" => pubsub::publish_bulk;
        "InvokeBinding" invoke_binding(InvokeBindingRequest) -> InvokeBindingResponse, "bindings" "v1" => bindings::invoke;
        "GetSecret" get_secret(GetSecretRequest) -> GetSecretResponse, "secrets" "v1" => secrets::get;
        "GetBulkSecret" get_bulk_secret(GetBulkSecretRequest) -> GetBulkSecretResponse, "secrets" "v1" => secrets::list;
        "GetConfiguration" get_configuration(GetConfigurationRequest) -> GetConfigurationResponse, "configuration" "v1" => configuration::get;
        "GetConfigurationAlpha1" get_configuration_alpha1(GetConfigurationRequest) -> GetConfigurationResponse, "configuration" "v1alpha1" => configuration::get;
        "SubscribeConfiguration" subscribe_configuration(SubscribeConfigurationRequest) -> Stream<SubscribeConfigurationResponse>, "configuration" "v1" => configuration::subscribe;
        "SubscribeConfigurationAlpha1" subscribe_configuration_alpha1(SubscribeConfigurationRequest) -> Stream<SubscribeConfigurationResponse>, "configuration" "v1alpha1" => configuration::subscribe;
        "UnsubscribeConfiguration" unsubscribe_configuration(UnsubscribeConfigurationRequest) -> UnsubscribeConfigurationResponse, "configuration" "v1" => configuration::unsubscribe;
        "UnsubscribeConfigurationAlpha1" unsubscribe_configuration_alpha1(UnsubscribeConfigurationRequest) -> UnsubscribeConfigurationResponse, "configuration" "v1alpha1" => configuration::unsubscribe;
        "TryLockAlpha1" try_lock_alpha1(TryLockRequest) -> TryLockResponse, "lock" "v1alpha1" => lock::try_lock;
        "UnlockAlpha1" unlock_alpha1(UnlockRequest) -> UnlockResponse, "unlock" "v1alpha1" => lock::unlock;
        "GetMetadata" get_metadata(GetMetadataRequest) -> GetMetadataResponse, "metadata" "v1" => metadata::get;
        "SetMetadata" set_metadata(SetMetadataRequest) -> (), "metadata" "v1" => metadata::set;
    }
    whole {
        "InvokeService" invoke_service(InvokeServiceRequest) -> InvokeResponse, "invoke" "v1" => invoke::service;
        "SubscribeTopicEventsAlpha1" subscribe_topic_events_alpha1(Streaming<SubscribeTopicEventsRequestAlpha1>) -> Stream<SubscribeTopicEventsResponseAlpha1>, "subscribe" "v1alpha1" => stream::subscribe;
        "Shutdown" shutdown(ShutdownRequest) -> (), "shutdown" "v1" => metadata::shutdown;
    }
    unbuilt {
        "RegisterActorTimer" register_actor_timer(RegisterActorTimerRequest) -> (), "actors" "v1" => ActorTimer;
        "UnregisterActorTimer" unregister_actor_timer(UnregisterActorTimerRequest) -> (), "actors" "v1" => ActorTimer;
        "RegisterActorReminder" register_actor_reminder(RegisterActorReminderRequest) -> (), "actors" "v1" => ActorReminder;
        "UnregisterActorReminder" unregister_actor_reminder(UnregisterActorReminderRequest) -> (), "actors" "v1" => ActorReminder;
        "UnregisterActorRemindersByType" unregister_actor_reminders_by_type(UnregisterActorRemindersByTypeRequest) -> UnregisterActorRemindersByTypeResponse, "actors" "v1" => ActorReminder;
        "ListActorReminders" list_actor_reminders(ListActorRemindersRequest) -> ListActorRemindersResponse, "actors" "v1" => ActorReminder;
        "GetActorReminder" get_actor_reminder(GetActorReminderRequest) -> GetActorReminderResponse, "actors" "v1" => ActorReminder;
        "GetActorState" get_actor_state(GetActorStateRequest) -> GetActorStateResponse, "actors" "v1" => ActorState;
        "ExecuteActorStateTransaction" execute_actor_state_transaction(ExecuteActorStateTransactionRequest) -> (), "actors" "v1" => ActorStateSave;
        "InvokeActor" invoke_actor(InvokeActorRequest) -> InvokeActorResponse, "actors" "v1" => ActorInvoke;
        "SubscribeActorEventsAlpha1" subscribe_actor_events_alpha1(Streaming<SubscribeActorEventsRequestAlpha1>) -> Stream<SubscribeActorEventsResponseAlpha1>, "actors" "v1alpha1" => ActorEvents;
        "EncryptAlpha1" encrypt_alpha1(Streaming<EncryptRequest>) -> Stream<EncryptResponse>, "crypto" "v1alpha1" => Crypto;
        "DecryptAlpha1" decrypt_alpha1(Streaming<DecryptRequest>) -> Stream<DecryptResponse>, "crypto" "v1alpha1" => Crypto;
        "SubtleGetKeyAlpha1" subtle_get_key_alpha1(SubtleGetKeyRequest) -> SubtleGetKeyResponse, "subtlecrypto" "v1alpha1" => SubtleCrypto;
        "SubtleEncryptAlpha1" subtle_encrypt_alpha1(SubtleEncryptRequest) -> SubtleEncryptResponse, "subtlecrypto" "v1alpha1" => SubtleCrypto;
        "SubtleDecryptAlpha1" subtle_decrypt_alpha1(SubtleDecryptRequest) -> SubtleDecryptResponse, "subtlecrypto" "v1alpha1" => SubtleCrypto;
        "SubtleWrapKeyAlpha1" subtle_wrap_key_alpha1(SubtleWrapKeyRequest) -> SubtleWrapKeyResponse, "subtlecrypto" "v1alpha1" => SubtleCrypto;
        "SubtleUnwrapKeyAlpha1" subtle_unwrap_key_alpha1(SubtleUnwrapKeyRequest) -> SubtleUnwrapKeyResponse, "subtlecrypto" "v1alpha1" => SubtleCrypto;
        "SubtleSignAlpha1" subtle_sign_alpha1(SubtleSignRequest) -> SubtleSignResponse, "subtlecrypto" "v1alpha1" => SubtleCrypto;
        "SubtleVerifyAlpha1" subtle_verify_alpha1(SubtleVerifyRequest) -> SubtleVerifyResponse, "subtlecrypto" "v1alpha1" => SubtleCrypto;
        "StartWorkflowAlpha1" start_workflow_alpha1(StartWorkflowRequest) -> StartWorkflowResponse, "workflows" "v1alpha1" => WorkflowStart of workflow_component;
        "GetWorkflowAlpha1" get_workflow_alpha1(GetWorkflowRequest) -> GetWorkflowResponse, "workflows" "v1alpha1" => WorkflowGet of workflow_component;
        "PurgeWorkflowAlpha1" purge_workflow_alpha1(PurgeWorkflowRequest) -> (), "workflows" "v1alpha1" => WorkflowPurge of workflow_component;
        "TerminateWorkflowAlpha1" terminate_workflow_alpha1(TerminateWorkflowRequest) -> (), "workflows" "v1alpha1" => WorkflowTerminate of workflow_component;
        "PauseWorkflowAlpha1" pause_workflow_alpha1(PauseWorkflowRequest) -> (), "workflows" "v1alpha1" => WorkflowPause of workflow_component;
        "ResumeWorkflowAlpha1" resume_workflow_alpha1(ResumeWorkflowRequest) -> (), "workflows" "v1alpha1" => WorkflowResume of workflow_component;
        "RaiseEventWorkflowAlpha1" raise_event_workflow_alpha1(RaiseEventWorkflowRequest) -> (), "workflows" "v1alpha1" => WorkflowRaiseEvent of workflow_component;
        "StartWorkflowBeta1" start_workflow_beta1(StartWorkflowRequest) -> StartWorkflowResponse, "workflows" "v1beta1" => WorkflowStart of workflow_component;
        "GetWorkflowBeta1" get_workflow_beta1(GetWorkflowRequest) -> GetWorkflowResponse, "workflows" "v1beta1" => WorkflowGet of workflow_component;
        "PurgeWorkflowBeta1" purge_workflow_beta1(PurgeWorkflowRequest) -> (), "workflows" "v1beta1" => WorkflowPurge of workflow_component;
        "TerminateWorkflowBeta1" terminate_workflow_beta1(TerminateWorkflowRequest) -> (), "workflows" "v1beta1" => WorkflowTerminate of workflow_component;
        "PauseWorkflowBeta1" pause_workflow_beta1(PauseWorkflowRequest) -> (), "workflows" "v1beta1" => WorkflowPause of workflow_component;
        "ResumeWorkflowBeta1" resume_workflow_beta1(ResumeWorkflowRequest) -> (), "workflows" "v1beta1" => WorkflowResume of workflow_component;
        "RaiseEventWorkflowBeta1" raise_event_workflow_beta1(RaiseEventWorkflowRequest) -> (), "workflows" "v1beta1" => WorkflowRaiseEvent of workflow_component;
        "ScheduleJob" schedule_job(ScheduleJobRequest) -> ScheduleJobResponse, "jobs" "v1" => JobSchedule;
        "ScheduleJobAlpha1" schedule_job_alpha1(ScheduleJobRequest) -> ScheduleJobResponse, "jobs" "v1alpha1" => JobSchedule;
        "GetJob" get_job(GetJobRequest) -> GetJobResponse, "jobs" "v1" => JobGet;
        "GetJobAlpha1" get_job_alpha1(GetJobRequest) -> GetJobResponse, "jobs" "v1alpha1" => JobGet;
        "DeleteJob" delete_job(DeleteJobRequest) -> DeleteJobResponse, "jobs" "v1" => JobDelete;
        "DeleteJobAlpha1" delete_job_alpha1(DeleteJobRequest) -> DeleteJobResponse, "jobs" "v1alpha1" => JobDelete;
        "DeleteJobsByPrefix" delete_jobs_by_prefix(DeleteJobsByPrefixRequest) -> DeleteJobsByPrefixResponse, "jobs" "v1" => JobDelete;
        "DeleteJobsByPrefixAlpha1" delete_jobs_by_prefix_alpha1(DeleteJobsByPrefixRequestAlpha1) -> DeleteJobsByPrefixResponseAlpha1, "jobs" "v1alpha1" => JobDelete;
        "ListJobs" list_jobs(ListJobsRequest) -> ListJobsResponse, "jobs" "v1" => JobList;
        "ListJobsAlpha1" list_jobs_alpha1(ListJobsRequestAlpha1) -> ListJobsResponseAlpha1, "jobs" "v1alpha1" => JobList;
        "ConverseAlpha1" converse_alpha1(ConversationRequest) -> ConversationResponse, "conversation" "v1alpha1" => Conversation of name;
        "ConverseAlpha2" converse_alpha2(ConversationRequestAlpha2) -> ConversationResponseAlpha2, "conversation" "v1alpha2" => Conversation of name;
    }
}

#[cfg(test)]
mod tests {
    use mecha_core::api_rules::{ApiRule, ApiRules};
    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn every_method_of_the_service_is_in_the_table_under_a_name_that_lists_know() {
        let files = FileDescriptorSet::decode(mecha_proto::FILE_DESCRIPTOR_SET).unwrap().file;
        let runtime = files.iter().filter(|f| f.package() == "dapr.proto.runtime.v1");
        let service = runtime.flat_map(|f| &f.service).find(|s| s.name() == "Dapr").unwrap();
        assert!(!service.method.is_empty());
        for method in &service.method {
            let entry = find(method.name()).unwrap_or_else(|| panic!("{} is missing", method.name()));
            let rule = ApiRule { name: entry.api.into(), version: entry.version.into(), protocol: "grpc".into() };
            let (rules, warnings) = ApiRules::compile(&[], &[rule], false);
            assert!(warnings.is_empty(), "{warnings:?}");
            assert!(!rules.allows(entry.api, entry.version, Front::Grpc));
        }
        assert_eq!(find("Nothing"), None);
    }
}
