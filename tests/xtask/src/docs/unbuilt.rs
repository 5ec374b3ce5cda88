use std::fs;
use std::path::Path;

use http::Method;
use mecha_core::unbuilt::Unbuilt;

use super::included::{unbuilt_at, wire::statuses};
use super::markdown::{cell, code, codes, table};

/// The table of gRPC methods, with the API each unbuilt one belongs to.
const GRPC: &str = "daemon/src/grpc/api.rs";

/// Methods and paths of an API; what stands in braces is a placeholder.
const fn http(api: Unbuilt) -> &'static [(&'static str, &'static str)] {
    match api {
        Unbuilt::ActorInvoke => &[("GET POST PUT DELETE", "/v1.0/actors/{type}/{id}/method/{method}")],
        Unbuilt::ActorState => &[("GET", "/v1.0/actors/{type}/{id}/state/{key}")],
        Unbuilt::ActorStateSave => &[("POST PUT", "/v1.0/actors/{type}/{id}/state")],
        Unbuilt::ActorReminder => &[("GET POST PUT DELETE", "/v1.0/actors/{type}/{id}/reminders/{name}")],
        Unbuilt::ActorTimer => &[("POST PUT DELETE", "/v1.0/actors/{type}/{id}/timers/{name}")],
        Unbuilt::ActorEvents | Unbuilt::JobList => &[],
        Unbuilt::JobSchedule => &[("POST", "/v1.0/jobs/{name}"), ("POST", "/v1.0-alpha1/jobs/{name}")],
        Unbuilt::JobGet => &[("GET", "/v1.0/jobs/{name}"), ("GET", "/v1.0-alpha1/jobs/{name}")],
        Unbuilt::JobDelete => &[("DELETE", "/v1.0/jobs/{name}"), ("DELETE", "/v1.0-alpha1/jobs/{name}")],
        Unbuilt::WorkflowStart => &[("POST", "/v1.0/workflows/{component}/{workflow}/start")],
        Unbuilt::WorkflowGet => &[("GET", "/v1.0/workflows/{component}/{id}")],
        Unbuilt::WorkflowTerminate => &[("POST", "/v1.0/workflows/{component}/{id}/terminate")],
        Unbuilt::WorkflowPause => &[("POST", "/v1.0/workflows/{component}/{id}/pause")],
        Unbuilt::WorkflowResume => &[("POST", "/v1.0/workflows/{component}/{id}/resume")],
        Unbuilt::WorkflowPurge => &[("POST", "/v1.0/workflows/{component}/{id}/purge")],
        Unbuilt::WorkflowRaiseEvent => &[("POST", "/v1.0/workflows/{component}/{id}/raiseEvent/{event}")],
        Unbuilt::Crypto => {
            &[("PUT", "/v1.0-alpha1/crypto/{component}/encrypt"), ("PUT", "/v1.0-alpha1/crypto/{component}/decrypt")]
        }
        Unbuilt::SubtleCrypto => &[
            ("POST", "/v1.0-alpha1/subtlecrypto/{component}/getkey"),
            ("POST", "/v1.0-alpha1/subtlecrypto/{component}/encrypt"),
            ("POST", "/v1.0-alpha1/subtlecrypto/{component}/decrypt"),
            ("POST", "/v1.0-alpha1/subtlecrypto/{component}/wrapkey"),
            ("POST", "/v1.0-alpha1/subtlecrypto/{component}/unwrapkey"),
            ("POST", "/v1.0-alpha1/subtlecrypto/{component}/sign"),
            ("POST", "/v1.0-alpha1/subtlecrypto/{component}/verify"),
        ],
        Unbuilt::Conversation => &[
            ("POST", "/v1.0-alpha1/conversation/{component}/converse"),
            ("POST", "/v1.0-alpha2/conversation/{component}/converse"),
        ],
    }
}

pub(super) fn page(root: &Path) -> Result<String, String> {
    let source = fs::read_to_string(root.join(GRPC)).map_err(|e| format!("cannot read {GRPC}: {e}"))?;
    let methods = methods(&source)?;
    let mut rows = Vec::new();
    for api in Unbuilt::ALL {
        for (verbs, path) in http(*api) {
            for verb in verbs.split(' ') {
                answers(*api, verb, path)?;
            }
        }
        let paths = http(*api).iter().map(|(verbs, path)| code(&format!("{verbs} {path}"))).collect::<Vec<_>>();
        let name = format!("{api:?}");
        let grpc = methods.iter().filter(|(_, what)| *what == name).map(|(method, _)| *method);
        let error = api.error("{component}");
        let (status, grpc_code) = statuses(&error);
        rows.push([
            name.clone(),
            paths.join("<br>"),
            codes(grpc),
            format!("[`{0}`](../errors/{0}.md)", error.code().as_str()),
            format!("{} / {grpc_code:?}", status.as_u16()),
            cell(error.message()),
        ]);
    }
    Ok(format!(
        "# APIs that are not built yet\n\nThese have their place on both fronts and answer an error with a stable code: \
         the one Dapr gives where the service behind the API is not configured, and `ERR_API_UNIMPLEMENTED` where it \
         has none. Workflow paths also answer below `/v1.0-alpha1` and `/v1.0-beta1`. The services \
         `placement` and `scheduler` are messages only so far; mechad does not call them.\n\n{}",
        table(["API", "HTTP", "gRPC (`dapr.proto.runtime.v1.Dapr`)", "Code", "HTTP / gRPC", "Message"], rows)
    ))
}

/// Fails when the daemon does not route `verb path` to `api`.
fn answers(api: Unbuilt, verb: &str, path: &str) -> Result<(), String> {
    let wrong = |what: &str| {
        format!("{verb} {path} is {what}, and not {api:?}\n  next: correct it in tests/xtask/src/docs/unbuilt.rs")
    };
    let method = Method::from_bytes(verb.as_bytes()).map_err(|_| wrong("no request"))?;
    match unbuilt_at(&method, path) {
        Some(found) if found == api => Ok(()),
        Some(found) => Err(wrong(&format!("{found:?}"))),
        None => Err(wrong("no unbuilt API of daemon/src/http/routes.rs")),
    }
}

/// Methods of the `unbuilt` part of the table, with their API.
fn methods(source: &str) -> Result<Vec<(&str, &str)>, String> {
    let entry = |line| -> Option<(&str, &str)> {
        let (name, rest) = str::trim(line).strip_prefix('"')?.split_once('"')?;
        let (_, what) = rest.rsplit_once("=> ")?;
        Some((name, what.trim_end_matches(';').split(' ').next()?))
    };
    let part = source.rsplit_once("unbuilt {").map_or("", |(_, part)| part);
    let found: Vec<_> = part.lines().filter_map(entry).collect();
    for (method, what) in &found {
        if !Unbuilt::ALL.iter().any(|api| format!("{api:?}") == *what) {
            return Err(format!("{GRPC}: {method} names {what}, which mecha-core does not know"));
        }
    }
    if found.is_empty() {
        return Err(format!(
            "{GRPC}: no table `unbuilt {{ … }}` was found\n  next: correct tests/xtask/src/docs/unbuilt.rs"
        ));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_come_with_their_api() {
        let source = "serve! { plain { \"A\" a(X) -> Y, \"s\" \"v1\" => s::a; }\n unbuilt {\n  \
                      \"ListJobs\" list_jobs(A) -> B, \"jobs\" \"v1\" => JobList;\n  \
                      \"GetWorkflowBeta1\" g(A) -> B, \"w\" \"v1\" => WorkflowGet of component;\n }\n}";
        assert_eq!(methods(source), Ok(vec![("ListJobs", "JobList"), ("GetWorkflowBeta1", "WorkflowGet")]));
        assert!(methods("nothing").is_err());
        assert!(methods("unbuilt {\n \"A\" a() => Nobody;\n}").unwrap_err().contains("Nobody"));
    }

    #[test]
    fn a_path_that_the_daemon_does_not_have_is_refused() {
        assert!(answers(Unbuilt::JobGet, "GET", "/v1.0/jobs/{name}").is_ok());
        assert!(answers(Unbuilt::JobGet, "GET", "/v1.0/state/{store}/{key}").unwrap_err().contains("no unbuilt API"));
        assert!(answers(Unbuilt::JobGet, "DELETE", "/v1.0/jobs/{name}").unwrap_err().contains("JobDelete"));
    }
}
